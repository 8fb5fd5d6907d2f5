"""A training step in its variants, and where its time goes: medians of interleaved repetitions.

    python benchmarks/train_step.py --config=experiments/digits.py
    python benchmarks/train_step.py --only=float32,bfloat16 --config=experiments/mnist.py

The paper's CIFAR-10 network, for an accelerator:

    python benchmarks/train_step.py --only=float32,bfloat16 --config=experiments/cifar10_small.py \
        --config.model.network.channels=128 --config.model.network.num_blocks=32 \
        --config.model.network.num_groups=32 --config.model.network.attention=middle \
        --config.train.batch_size=128

Variants: the network in float32 and in bfloat16 (the loss is float32 always), with `remat`, and
with the batch in four micro-batches (`accumulation`). `peak` is what XLA plans for one device:
the state, the batch and the work space of a step.
"""

import dataclasses
import functools
import statistics
import sys
import time

import jax

from vdm.run import cli, parts, program as programs, throughput
from vdm.run.batches import make_batch, on_devices
from vdm.run.step import init_state

REPETITIONS = 30
VARIANTS = {
    "float32": lambda config: with_network(config, dtype="float32"),
    "bfloat16": lambda config: with_network(config, dtype="bfloat16"),
    "remat": lambda config: with_network(config, remat=True),
    "bfloat16 remat": lambda config: with_network(config, dtype="bfloat16", remat=True),
    "accumulation": lambda config: with_train(config, accumulation_steps=4),
}


def with_network(config, **changes):
    model = dataclasses.replace(config.model, network={**config.model.network, **changes})
    return dataclasses.replace(config, model=model)


def with_train(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def main(arguments):
    only = next((a.removeprefix("--only=") for a in arguments if a.startswith("--only=")), None)
    config = cli.read_config([a for a in arguments if not a.startswith("--only=")])
    names = list(VARIANTS) if only is None else only.split(",")
    variants = {name: Variant(VARIANTS[name](config)) for name in names}
    first = parts.prepare(config)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variants[names[0]].state.params))
    size = config.train.batch_size
    devices = f"{first.mesh.size} × {jax.devices()[0].device_kind}"
    print(f"{parameters:,} parameters, batch {size}, {devices}")
    times = medians({name: one.step for name, one in variants.items()})
    print(f"{'step':18s}{'ms':>10s}{'÷ first':>9s}{'images/s':>10s}{'MFU':>8s}{'peak, MB':>10s}")
    for name, seconds in times.items():
        one = variants[name]
        mfu = "" if one.full_speed is None else f"{1 / seconds / one.full_speed:.1%}"
        print(
            f"{name:18s}{1e3 * seconds:10.2f}{seconds / times[names[0]]:9.2f}"
            f"{size / seconds:10.1f}{mfu:>8s}{one.peak / 1e6:10.1f}"
        )
    print(f"\n{'within ' + names[0]:30s}{'ms':>8s}{'of the step':>13s}")
    for name, seconds in medians(inside(VARIANTS[names[0]](config))).items():
        print(f"{name:30s}{1e3 * seconds:8.2f}{seconds / times[names[0]]:13.1%}")


class Variant:
    """A compiled step, which is given back the state that it made."""

    def __init__(self, config):
        dataset, trainer, told, mesh, example = parts.prepare(config)
        program = programs.build(trainer, mesh, example)
        batch = next(on_devices(dataset, told, config, mesh, 0))
        self.state = program.init()
        self.full_speed = throughput.full_speed(trainer, mesh, program.template, example)
        self.compiled = program.step.lower(self.state, [batch]).compile()
        memory = self.compiled.memory_analysis()
        self.peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        self.batch = batch

    def step(self):
        self.state, metrics = self.compiled(self.state, [self.batch])
        return metrics


def inside(config):
    dataset, trainer, told, _, _ = parts.prepare(config)
    batch = jax.device_put(make_batch(dataset, told, config, 0))
    params = init_state(trainer, batch).params
    key = jax.random.key(1)

    def loss(params, batch):
        terms = trainer.model.vlb(params, key, batch.x, batch.cond, dropout_key=key)
        return terms.total.mean()

    bound, gradient = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
    return {
        "bound and its gradient": functools.partial(gradient, params, batch),
        "bound alone": functools.partial(bound, params, batch),
    }


def medians(work):
    """Return the median seconds of each piece of work; the first repetition compiles."""
    seconds = {name: [] for name in work}
    for _ in range(REPETITIONS + 1):
        for name, run in work.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
