"""Where a training step's time goes: bound, gradient, whole step and input, side by side.

    python benchmarks/train_step.py --config=experiments/digits.py

Prints medians over interleaved repetitions, each with its share of the whole step.
"""

import functools
import statistics
import sys
import time

import jax

from vdm.run import build, cli, condition, data
from vdm.run.batches import make_batch
from vdm.run.step import init_state, train_step

REPETITIONS = 30


def main(arguments):
    config = cli.read_config(arguments)
    dataset = data.load(config.data, "train")
    trainer = build.trainer(config, dataset)
    model = trainer.model
    told = condition.build(model.network, dataset, config.data.augment)
    batch = jax.device_put(make_batch(dataset, told, config, 0))
    state = init_state(trainer, batch)
    key = jax.random.key(1)

    def loss(params):
        terms = model.vlb(params, key, batch.x, batch.cond, dropout_key=key)
        return terms.total.mean()

    whole = jax.jit(functools.partial(train_step, trainer=trainer))
    bound, gradient = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
    work = {
        "whole step": lambda: whole(state, batch),
        "bound and its gradient": lambda: gradient(state.params),
        "bound alone": lambda: bound(state.params),
        "host: gathering the batch": lambda: make_batch(dataset, told, config, 1),
    }
    times = {name: [] for name in work}
    for repetition in range(REPETITIONS + 1):
        for name, run in work.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if repetition:  # the first one compiles
                times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(f"{size:,} parameters, batch {config.train.batch_size}, {jax.devices()[0].device_kind}")
    for name, median in medians.items():
        print(f"{name:28s}{median:9.2f} ms {median / medians['whole step']:7.1%}")


if __name__ == "__main__":
    main(sys.argv[1:])
