"""Networks of equal work side by side: bits per dimension at equal steps and equal CPU seconds.

    python benchmarks/networks.py --set=digits
    TFDS_DATA_DIR=/data/tfds python benchmarks/networks.py --set=mnist --steps=800
    python benchmarks/networks.py --set=digits --rows=dit@0.001,dit@0.003 --seeds=0

A row is a network, and its learning rate where that is not its own: `dit@0.003`. The networks of
a set take the same FLOPs for a training step, as XLA counts them, within 10 % of one another: at
equal steps they have done equal work. All rows see the same batches, with the recipe `ours` of
`benchmarks/recipe.py` at a constant rate: so every point of a curve is a run that ends there.

The bound is watched on examples held out of the training set, and rates are to be chosen by it. The
test split is evaluated once, at the end; see `race.py`. Of patches64, the photographs of
`experiments/patches64.py`, what is held out is the columns next to the test split.
"""

import argparse
import functools
import pathlib
import re

import jax
import numpy as np

import race
import recipe
import short_runs
from vdm.run.errors import UserError
from vdm.run.training import build
from vdm.run.training.step import Batch, init_state, train_step

BLOCKS = {"name": "unet", "channels": 32, "num_blocks": 1, "num_groups": 8, "attention": "none"}
TOKENS = {"name": "dit", "patch": 2, "channels": 64, "num_blocks": 7, "num_heads": 4}
# Sizes of equal work.
NETWORKS = {
    "digits": {
        "plain": BLOCKS,
        "levels": BLOCKS | {"levels": (1,)},
        "dit": TOKENS,
    },
    "mnist": {
        "plain": BLOCKS,
        "levels": BLOCKS | {"levels": (1, 1)},
        "dit": TOKENS | {"num_blocks": 6},
    },
    "patches64": {
        "plain": BLOCKS,
        "levels": BLOCKS | {"levels": (1, 1, 1)},
        "dit": TOKENS | {"patch": 4, "channels": 128},
    },
}
SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "patches64": (64, 64, 3)}
# The best on held-out examples, as README.md says.
RATES = {
    "digits": {"plain": 1e-2, "levels": 5e-3, "dit": 3e-3},
    "mnist": {"plain": 2e-2, "levels": 5e-3, "dit": 6e-3},
    "patches64": {"plain": 6e-3, "levels": 3e-3, "dit": 4e-3},
}
ROWS = ("plain", "levels", "dit")
EQUAL = 0.1  # of the FLOPs of any two rows
ROW = re.compile(rf"({'|'.join(ROWS)})(?:@(\d*\.?\d+(?:e-?\d+)?))?")


def changes_of(row, chosen, base):
    """Return what a row changes in the config of a set; raises UserError for one that is none."""
    words = ROW.fullmatch(row)
    if words is None:
        raise UserError(f"no row {row!r}: expected such as dit@0.001, of {', '.join(ROWS)}")
    name, rate = words[1], float(words[2] or RATES[chosen][words[1]])
    network = NETWORKS[chosen][name] | {
        "fourier_exponents": base.model.network["fourier_exponents"],
        "dropout": 0.0,
    }
    return {"model.network": network, **recipe.changes_of(f"ours@{rate}-decay")}


def make_config(row, chosen, flags, steps, seed):
    """Return the config of a run of a row on a set."""
    base = short_runs.read_config([*race.SETS[chosen], *flags], steps=steps, seed=seed)
    return short_runs.changed(base, changes_of(row, chosen, base))


def step_flops(config, shape):
    """Return the FLOPs of a training step on examples of a shape, as XLA counts them."""
    trainer = build.trainer(config)
    x = build.blank(trainer.model, shape)
    batch = Batch(jax.ShapeDtypeStruct((config.train.batch_size, *shape), x.dtype), None)
    state = jax.eval_shape(lambda: init_state(trainer, Batch(x, None)))
    step = jax.jit(lambda state, batch: train_step(state, batch, trainer=trainer)[0])
    return step.lower(state, batch).cost_analysis()["flops"]


def check_equal(flops):
    """Print the FLOPs of all rows; raises UserError where two differ by more than `EQUAL`."""
    for row, found in flops.items():
        print(f"{row}: {found / 1e6:.1f} MFLOP a step", flush=True)
    least, most = min(flops, key=flops.get), max(flops, key=flops.get)
    if flops[most] > (1 + EQUAL) * flops[least]:
        raise UserError(
            f"the rows are to take equal work, within {EQUAL:.0%}: {most} takes "
            f"{flops[most] / flops[least]:.2f} times as much as {least}"
        )


def table(runs, flops):
    """Print the bound of every row at equal steps and at equal seconds, mean ± standard error."""
    common = min(
        points[-1]["seconds"] for of_seeds in runs.values() for points in of_seeds.values()
    )
    heads = ["row", "seeds", "MFLOP a step", "held out, equal steps", f"held out, {common:.3g} s"]
    heads += ["test, equal steps", "s"]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for row, of_seeds in runs.items():
        ends = [points[-1] for points in of_seeds.values()]
        cells = [f"{flops[row] / 1e6:.0f}", short_runs.cell([end["ema"] for end in ends])]
        cells.append(short_runs.cell([race.at(points, common) for points in of_seeds.values()]))
        cells.append(short_runs.cell([end["test"] for end in ends]))
        cells.append(f"{np.mean([end['seconds'] for end in ends]):.0f}")
        print(f"| {row} | {len(ends)} | {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--set", choices=list(NETWORKS), default="digits")
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--runs", type=pathlib.Path, help="by default runs/networks/SET")
    parser.add_argument("--picture", type=pathlib.Path, help="a file for the curves of the rows")
    options, flags = parser.parse_known_args()
    options.runs = options.runs or pathlib.Path("runs/networks") / options.set
    seeds = short_runs.seeds(options.seeds)
    try:
        configs = {
            row: make_config(row, options.set, flags, options.steps, seeds[0])
            for row in options.rows.split(",")
        }
        flops = {row: step_flops(config, SHAPES[options.set]) for row, config in configs.items()}
        check_equal(flops)
        folder = options.runs / str(options.steps)
        runs = {
            row: race.measure(row, config, seeds, folder, functools.partial(race.splits, config))
            for row, config in configs.items()
        }
    except UserError as error:
        parser.error(str(error))
    print(f"\n{options.set}, {options.steps} steps")
    table(runs, flops)
    if options.picture:
        race.draw(runs, options.picture, "held-out")


if __name__ == "__main__":
    main()
