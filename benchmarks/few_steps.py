"""What few steps cost in bits, with and without a fitted chain, on a run's test split.

    python benchmarks/few_steps.py --workdir=runs/demo
    python benchmarks/few_steps.py --workdir=runs/mnist --num=1000 --variances=level,table,head

Each row is a number of steps T, each column a chain: "even" is the T-step bound of VDM, v = 0 and
even times of the schedule; "placed" has v = 0 and the best levels; the others have the best levels
and a variance that depends on the level, on the position, or on z itself by a small network. All
are fitted to training examples alone, x̂ is clipped everywhere, and every example has one draw of
noise in each of the T steps: mean ± standard error over test examples. The last line is the bound
in continuous time, of 64 stratified noise levels for each example.
"""

import argparse
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from vdm import few_steps, noise_levels
from vdm.losses import bits_per_dim
from vdm.run import trained

ROWS = 1024  # of one call of the network, at most
NAMES = {"none": "placed"}
LEVELS = 64  # for each example in continuous time


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--steps", default="5,10,20,50", help="numbers of steps")
    parser.add_argument("--variances", default="none,level,table,head")
    parser.add_argument("--num", type=int, default=None, help="test examples, all by default")
    parser.add_argument("--num_train", type=int, default=10_000, help="training examples at most")
    parser.add_argument("--num_levels", type=int, default=128)
    options = parser.parse_args()
    numbers = [int(word) for word in options.steps.split(",")]
    run = trained.load(options.workdir, devices=trained.one_device())
    fitted = {}
    train = examples(run, "train", options.num_train)
    for variance in options.variances.split(","):
        began = time.perf_counter()
        fitted[variance] = few_steps.fit(
            run.model, run.params, *train, variance=variance, num_levels=options.num_levels
        )
        print(f"{variance}: fitted in {time.perf_counter() - began:.0f} s", flush=True)
    test = examples(run, "test", options.num)
    columns = ["even", *(NAMES.get(name, name) for name in fitted)]
    print(f"| T | {' | '.join(columns)} |\n| {' | '.join(['---'] * (1 + len(columns)))} |")
    clip = run.model.likelihood.bounds is not None
    for num_steps in numbers:
        even = few_steps.even(run.model, run.params, num_steps, clip_denoised=clip)
        chains = [even, *(few_steps.place(part, num_steps) for part in fitted.values())]
        bpd = [mean(bound_of(run, *test, chain)) for chain in chains]
        print(f"| {num_steps} | {' | '.join(bpd)} |", flush=True)
    print(f"\nT = ∞: {mean(continuous(run, *test, clip))} on {len(test[0])} test examples")


def examples(run, split, num):
    """Return data and conditions, evenly spaced over a split."""
    found = trained.dataset(run, split)
    index = np.linspace(0, len(found) - 1, min(num or len(found), len(found))).round().astype(int)
    part = found.take(index)
    return part.x, run.condition.of(len(index), part.labels)


def bound_of(run, x, cond, chain):
    """Return the bound of every example over all steps of a chain, in bits per dimension."""
    return every(run, x, cond, functools.partial(_steps, chain=chain), chain.num_steps)


def continuous(run, x, cond, clip):
    """Return the bound in continuous time of every example."""
    return every(run, x, cond, functools.partial(_continuous, clip=clip), LEVELS)


def every(run, x, cond, fn, per_example):
    """Return fn's values of all examples, as many at once as ROWS allows; the last ones padded."""
    size = max(1, min(len(x), ROWS // per_example))
    compiled = jax.jit(functools.partial(fn, run.model))
    found = []
    for start in range(0, len(x), size):
        rows = np.minimum(np.arange(start, start + size), len(x) - 1)
        given = None if cond is None else cond[rows]
        key = jax.random.fold_in(jax.random.key(0), start)
        found.append(np.asarray(compiled(run.params, key, x[rows], given)))
    nats = np.concatenate(found)[: len(x)]
    return bits_per_dim(nats, np.prod(run.shape))


def _steps(model, params, key, x, cond, *, chain):
    return model.vlb(params, key, x, cond, chain=chain, all_steps=True).total


def _continuous(model, params, key, x, cond, *, clip):
    each = functools.partial(jnp.repeat, repeats=LEVELS, axis=0)
    offset = jax.random.uniform(jax.random.fold_in(key, 1), (len(x), 1))
    times = jnp.mod(offset + jnp.arange(LEVELS) / LEVELS, 1.0).reshape(-1)
    where = noise_levels.from_times(model.log_snr(params), times)
    cond = None if cond is None else each(cond)
    terms = model.vlb(params, key, each(x), cond, noise_levels=where, clip_denoised=clip)
    return terms.total.reshape(len(x), LEVELS).mean(1)


def mean(bpd):
    return f"{bpd.mean():.3f} ± {bpd.std(ddof=1) / np.sqrt(len(bpd)):.3f}"


if __name__ == "__main__":
    main()
