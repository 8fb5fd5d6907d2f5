"""Bits per dimension against steps and seconds: the paper's recipe and ours, change by change.

    taskset -c 1 python benchmarks/recipe.py
    python benchmarks/recipe.py --rows=paper@0.008,ours,fast+full/600 --against=paper@0.008 \
        --on=test --picture=docs/pictures/recipe.png
    python benchmarks/recipe.py --set=cifar10 --seconds=600 --rows=paper,fast --rates=2e-3,5e-3,1e-2

All rows train on the same examples, with the same budget and memory of the average of parameters
(EMA), and the same network but for the Wiener filter of `+full` and `+stationary`; see `race.py`.
A row is a recipe, its learning rate where that is not its own, and what is added or left out:
`paper@0.008+head` is the paper's recipe at the rate 0.008 with the v head, `fast+stationary+batch4`
our fast one with a filter and batches of 4. A row may be planned for steps of its own, as
`fast/600` is. With `--seconds` each row has as many steps as take so many seconds, and a cosine
ends there.

With `--rates` every row without a rate is first trained at each of them with the first seed, and
goes on with the one that is best on the examples held out of training; `--on` says on what the
curves of the table are seen. The large network is for an accelerator:

    python benchmarks/recipe.py --set=cifar10_64 --steps=20000 --seeds=0 --rows=paper,ours \
        --rates=4e-4,1e-3,2e-3
"""

import argparse
import functools
import pathlib
import re

import numpy as np

import race
import short_runs
from vdm.run.errors import UserError
from vdm.run.trained import PARAMS

# What the official code does, whatever the base config says; the ends keep their start.
PAPER = {
    "model.schedule.name": "learned_linear",
    "model.prediction": "eps",
    "model.network.residual": True,
    "model.network.wiener": "none",
    "objective.law": {"name": "schedule"},
    "objective.draw": "low_discrepancy",
    "objective.weighting": {"name": "elbo"},
    "optimizer.method": {"name": "adamw"},
    "optimizer.decay": "constant",
    "optimizer.warmup_steps": 100,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.99,
    "optimizer.weight_decay": 0.01,
    "optimizer.clip_norm": 0.0,
    "evaluate.law": "sigmoid",  # one for all rows: the same levels, and the smallest error
}
CHANGES = {
    "law": {"objective.law": {"name": "sigmoid"}},
    # Only a fresh ε̂ should be z; v̂ begins at 0.
    "head": {"model.prediction": "v", "model.network.residual": False},
    "decay": {"optimizer.decay": "cosine"},
    "clip": {"optimizer.clip_norm": 1.0},
    "betas": {"optimizer.b2": 0.999},
    "adaptive": {"objective.law": {"name": "adaptive"}},
    "fixed": {"model.schedule.name": "linear"},
    "muon": {"optimizer.method": {"name": "muon"}, "optimizer.warmup_steps": 20},
    "quick": {"optimizer.b2": 0.95},
    "full": {"model.network.wiener": "full"},
    "stationary": {"model.network.wiener": "stationary"},
    "batch2": {"train.batch_size": 2},
    "batch4": {"train.batch_size": 4},
    "batch8": {"train.batch_size": 8},
}
# A recipe's rate and changes.
RECIPES = {
    "paper": (2e-4, ()),
    "ours": (1.6e-2, ("law", "head", "decay", "clip")),
    "fast": (1.5e-2, ("law", "head", "decay", "clip", "muon", "quick")),
}
ROW = re.compile(
    rf"({'|'.join(RECIPES)})(?:@(\d*\.?\d+(?:e-?\d+)?))?((?:[+-](?:{'|'.join(CHANGES)}))*)(?:/(\d+))?"
)
TUNED = "paper@0.008"  # the best of 2e-3, 4e-3, 8e-3 and 1.6e-2
ROWS = ("paper", TUNED, *(f"{TUNED}+{name}" for name in RECIPES["ours"][1]))
ROWS += ("ours", *(f"ours-{name}" for name in RECIPES["ours"][1]))


def changes_of(row):
    """Return what a row changes in the config; raises UserError for one that is none."""
    words = parsed(row)
    rate, names = RECIPES[words[1]]
    rate, names = float(words[2] or rate), list(names)
    for sign, name in re.findall(r"([+-])(\w+)", words[3]):
        if (sign == "-") != (name in names):
            raise UserError(
                f"row {row!r}: {name!r} is {'not in it' if sign == '-' else 'in it already'}"
            )
        names.remove(name) if sign == "-" else names.append(name)
    # Learned ends go with the network's own rate, as in the official code.
    changes = PAPER | {"optimizer.learning_rate": rate, "optimizer.schedule_learning_rate": rate}
    return {key: v for part in (changes, *(CHANGES[n] for n in names)) for key, v in part.items()}


def parsed(row):
    """Return the match of a row's words; raises UserError for what is none."""
    words = ROW.fullmatch(row)
    if words is None:
        raise UserError(
            f"no row {row!r}: expected such as paper@0.002+head/600, of {', '.join(CHANGES)}"
        )
    return words


def with_rate(row, rate):
    """Return a row at a rate."""
    recipe = parsed(row)[1]
    return f"{recipe}@{rate}{row.removeprefix(recipe)}"


def make_config(row, flags, steps, seed):
    """Return the config of a run of a row, of so many steps unless it names its own."""
    steps = int(parsed(row)[4] or steps)
    return short_runs.changed(
        short_runs.read_config(flags, steps=steps, seed=seed), changes_of(row)
    )


def run(row, on, seeds, options, flags):
    """Return the points of each seed of a row, watched on a split."""
    config = make_config(row, flags, options.steps, seeds[0])
    folder = folder_of(options)
    load = functools.partial(race.splits, config, on)
    if options.seconds:
        words = parsed(row)  # at any rate a step takes as long
        pace = folder / f"pace_{words[1]}{words[3]}.json"
        config = race.planned(config, options.seconds, pace, load)
    return race.measure(row, config, seeds, folder / on, load)


def folder_of(options):
    """Return the folder of the runs of a set and a budget."""
    budget = f"{options.seconds:g}_seconds" if options.seconds else f"{options.steps}_steps"
    return options.runs / options.set / budget


def at_best_rate(row, rates, points_of):
    """Return a row at the rate that is best on held-out examples, where it names none itself.

    A rate at which training diverges is passed over; raises UserError where all of them are.
    """
    if not rates or parsed(row)[2]:
        return row
    found = {}
    for rate in rates:
        named = with_rate(row, rate)
        try:
            (points,) = points_of(named).values()
        except UserError as error:
            print(f"{named}: {error}", flush=True)
            continue
        found[named] = points[-1]["ema"]
        print(f"{named}: {found[named]:.4f} on held-out examples", flush=True)
    if not found:
        raise UserError(f"row {row!r} has no bound at any of the rates {', '.join(rates)}")
    return min(found, key=found.get)


def table(runs, against, split):
    """Print the final bpd of every row, and where it first has that of others, seed by seed."""
    other = next(name for name in race.WATCHED if name != split)
    heads = ["row", "seeds", "steps", f"{split}, EMA", f"{split}, raw", f"{other}, EMA", "s"]
    heads += [f"steps (s) to the final bpd of {name}" for name in against]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for row, of_seeds in runs.items():
        ends = [points[-1] for points in of_seeds.values()]
        cells = [short_runs.cell([end[kind] for end in ends]) for kind in (*PARAMS, other)]
        cells.append(f"{np.mean([end['seconds'] for end in ends]):.0f}")
        for name in against:
            found = [race.reached(p, runs[name][seed][-1]["ema"]) for seed, p in of_seeds.items()]
            cells.append(", ".join(f"{f[0]:.0f} ({f[1]:.1f})" if f else "never" for f in found))
        print(f"| {row} | {len(ends)} | {ends[0]['step']} | {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--set", choices=list(race.SETS), default="digits")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seconds", type=float, help="plan every row for so many, not for steps")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated")
    parser.add_argument("--rates", help="for the rows without one, comma-separated, to choose from")
    parser.add_argument("--against", help="rows whose final bpd is to be reached")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/recipe"))
    parser.add_argument(
        "--on", choices=race.WATCHED, default="validation", help="what the curves are seen on"
    )
    parser.add_argument("--picture", type=pathlib.Path, help="a file for the curves of the rows")
    options, flags = parser.parse_known_args()
    flags = [*race.SETS[options.set], *flags]
    rows, seeds = options.rows.split(","), short_runs.seeds(options.seeds)
    rates = options.rates.split(",") if options.rates else []
    against = options.against.split(",") if options.against else [r for r in ROWS[:2] if r in rows]
    if missing := [row for row in against if row not in rows]:
        parser.error(f"--against={missing[0]} is not among the rows")
    try:
        for row in rows:  # a mistake in any of them is found before the first run
            for named in [row, *(with_rate(row, rate) for rate in rates if not parsed(row)[2])]:
                make_config(named, flags, options.steps, 0)
            if options.seconds and parsed(row)[4]:
                raise UserError(f"row {row!r} has steps of its own: expected none with --seconds")
        points_of = functools.partial(run, options=options, flags=flags)
        scanned = functools.partial(points_of, on="validation", seeds=seeds[:1])
        best = {row: at_best_rate(row, rates, scanned) for row in rows}
        runs = {named: points_of(named, options.on, seeds) for named in best.values()}
    except UserError as error:
        parser.error(str(error))
    print(f"\n{options.set}, {folder_of(options).name.replace('_', ' ')}")
    table(runs, [best[row] for row in against], options.on)
    if options.picture:
        race.draw(runs, options.picture, options.on)


if __name__ == "__main__":
    main()
