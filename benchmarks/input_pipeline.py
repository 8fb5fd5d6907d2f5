"""What the input pipeline costs: training steps on batches from it, and on one batch kept.

    python benchmarks/input_pipeline.py --config=experiments/mnist.py

Windows of steps are interleaved and their medians compared: on a batch that lies on the device,
on batches from memory, and, where the set is stored in files, on batches read and decoded
meanwhile. The last columns are the pipeline alone, without any steps.
"""

import dataclasses
import itertools
import statistics
import sys
import time

import jax

from vdm.run import cli
from vdm.run.data.dataset import Stored, settle
from vdm.run.training import parts, program as programs
from vdm.run.training.batches import on_devices

WINDOWS = 15
SECONDS = 2.0  # a window's length, roughly


def main(arguments):
    config = cli.read_config(arguments)
    train = dataclasses.replace(config.train, num_steps=10**9)
    config = dataclasses.replace(config, train=train)
    made = parts.prepare(config)
    program = programs.build(made.trainer, made.mesh, made.example)

    def source(where):
        data = dataclasses.replace(config.data, in_memory=where)
        changed = dataclasses.replace(config, data=data)
        dataset = settle(made.dataset, where)
        return on_devices(dataset, made.condition, changed, made.mesh, 0)

    sources = {"batch kept": itertools.repeat(next(source("yes"))), "in memory": source("yes")}
    if isinstance(made.dataset.examples, Stored):
        sources["streamed"] = source("no")
    state = program.layout.hold(program.init())
    seconds, alone = {name: [] for name in sources}, {}

    def window(state, batches, steps):
        start = time.perf_counter()
        for _ in range(steps):
            state, metrics = program.step(state, [next(batches)])
        jax.block_until_ready((state, metrics))
        return state, (time.perf_counter() - start) / steps

    state, _ = window(state, sources["batch kept"], 1)  # compiles
    state, one = window(state, sources["batch kept"], 3)
    steps = max(1, round(SECONDS / one))
    for batches in sources.values():  # what is read ahead is read now
        state, _ = window(state, batches, 1)
    for _ in range(WINDOWS):
        for name, batches in sources.items():
            state, each = window(state, batches, steps)
            seconds[name].append(each)
    for name, batches in sources.items():
        start = time.perf_counter()
        for _ in range(200):
            jax.block_until_ready(next(batches))
        alone[name] = (time.perf_counter() - start) / 200
    size, kept = config.train.batch_size, statistics.median(seconds["batch kept"])
    print(f"{made.dataset.version}, batch {size}, {WINDOWS} windows of {steps} steps")
    print(
        f"{'batches':12s}{'ms per step':>13s}{'images/s':>10s}{'cost':>8s}{'pipeline alone':>18s}"
    )
    for name, values in seconds.items():
        each = statistics.median(values)
        print(
            f"{name:12s}{1e3 * each:13.2f}{size / each:10.1f}{each / kept - 1:8.1%}"
            f"{size / alone[name]:12.0f} im/s"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
