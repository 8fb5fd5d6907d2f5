"""Bits per dimension against steps and seconds: the paper's recipe and ours, change by change.

    taskset -c 1 python benchmarks/recipe.py
    python benchmarks/recipe.py --rows=paper,paper@0.008,ours --picture=docs/pictures/recipe.png
    python benchmarks/recipe.py --rows=ours --steps=750

All rows train the same network on the same batches, with the same warm-up, budget and memory of
the average of parameters (EMA), and are evaluated on the test images at even steps along the run
with the same noise. A row is a recipe, its learning rate where that is not its own, and what is
added or left out: `paper@0.008+head` is the paper's recipe at the rate 0.008 with the v head. A row
may be planned for steps of its own, as `fast/600` is, so that rows can be of equal seconds.

A rate is chosen by examples held out of training, not by the test split:

    python benchmarks/recipe.py --on=validation --seeds=7 --rows=fast@0.01/600,fast@0.02/600 \
        --config.train.validation_examples=300

CIFAR-10 on an accelerator, where the rates are those of a large network:

    python benchmarks/recipe.py --runs=runs/recipe_cifar10 --steps=20000 --seeds=0 \
        --rows=paper,paper@0.0004,ours@0.0004 --against=paper,paper@0.0004 \
        --config=experiments/cifar10.py --config.evaluate.levels_per_example=1 \
        --config.evaluate.batch_size=1024

Finished runs are kept in the folder `--runs` and not repeated, so the command may be stopped and
started again. Seconds are the processor's own on a CPU, whatever else runs there, and the clock's
on an accelerator; compiling and evaluating are not counted.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import re
import time

import jax
import numpy as np
from matplotlib.figure import Figure

import short_runs
from vdm.run import config as configs, data
from vdm.run.data import validation
from vdm.run.data.dataset import settle
from vdm.run.errors import UserError
from vdm.run.evaluation import bound
from vdm.run.system.files import read_json, write_json
from vdm.run.trained import PARAMS, Trained
from vdm.run.training import parts, program as programs
from vdm.run.training.batches import on_devices
from vdm.run.training.step import init_state, train_step

# What the official code does, whatever the base config says; the ends keep their start.
PAPER = {
    "model.schedule.name": "learned_linear",
    "model.prediction": "eps",
    "objective.law": {"name": "schedule"},
    "objective.draw": "low_discrepancy",
    "objective.weighting": {"name": "elbo"},
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
EVALUATIONS = 10  # along a run, at even steps


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


def make_config(row, flags, steps, seed):
    """Return the config of a run of a row, of so many steps unless it names its own."""
    steps = int(parsed(row)[4] or steps)
    return short_runs.changed(
        short_runs.read_config(flags, steps=steps, seed=seed), changes_of(row)
    )


def splits(config):
    """Return what to train on, what to watch along a run, and by name what to evaluate last."""
    return validation.load(config, "train"), data.load(config.data, "test"), {}


def held_out(config):
    """Return the same as `splits`, but watch the examples held out of training."""
    return validation.load(config, "train"), validation.load(config, "validation"), {}


def learn(config, seeds, load=splits):
    """Train for each seed, all by one compilation; yield the bpd and seconds along each run."""
    training, watched, last = load(config)
    dataset, trainer, condition, mesh, example = parts.of(config, training)
    dataset, watched = (settle(part, config.data.in_memory) for part in (dataset, watched))
    template = programs.template(trainer, mesh, example)
    places = jax.tree.map(lambda leaf: leaf.sharding, template)

    def with_seed(seed):
        return trainer._replace(config=dataclasses.replace(config, seed=seed))

    init = jax.jit(
        lambda seed: init_state(with_seed(seed), example),
        out_shardings=places,
        compiler_options={"xla_backend_optimization_level": 0},  # as `vdm train` does
    )
    step = jax.jit(
        lambda state, batch, seed: train_step(state, batch, trainer=with_seed(seed))[0],
        donate_argnums=0,
        out_shardings=places,
    )
    run = Trained(
        config,
        trainer.model,
        mesh,
        {},
        0,
        dataset.shape,
        condition,
        law=trainer.objective.law,
    )
    fn = bound.row_fn(run, config.evaluate, clip_denoised=False)

    def bpd(params, state, examples=watched):
        now = run._replace(params=params, law_state=state.law_state)
        terms = bound.measure(fn, now, examples, config.evaluate, None).terms
        return float(terms.sum(-1).mean())

    # Two processes on one core would see each other's seconds; not those of its own work.
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    ends = {round(config.train.num_steps * i / EVALUATIONS) for i in range(1, EVALUATIONS + 1)}
    compiled = None
    for seed in seeds:
        upcoming = on_devices(dataset, condition, dataclasses.replace(config, seed=seed), mesh, 0)
        state, points, seconds = init(seed), [], 0.0
        for done, batch in enumerate(upcoming, 1):
            if compiled is None:  # beforehand: no part of the seconds
                compiled = step.lower(state, batch, seed).compile()
            if done == 1:
                started = clock()
            state = compiled(state, batch, seed)
            if done in ends:
                jax.block_until_ready(state)
                seconds += clock() - started
                points.append({"step": done, "seconds": seconds, "ema": bpd(state.ema, state)})
                started = clock()
        points[-1]["raw"] = bpd(state.params, state)
        points[-1] |= {name: bpd(state.ema, state, part) for name, part in last.items()}
        yield points


def measure(row, config, seeds, options, load=splits):
    """Train the runs of a row that are not there yet; return the points of each seed."""
    values = configs.to_dict(config)
    del values["seed"]
    folder = folder_of(options)
    paths = {seed: folder / f"{row.replace('/', '_of_')}_{seed}.json" for seed in seeds}
    missing = [seed for seed in seeds if not paths[seed].exists()]
    found = learn(config, missing, load) if missing else ()
    for seed, points in zip(missing, found, strict=True):
        write_json(paths[seed], {"config": values, "points": points})
        print(f"{row}, seed {seed}: {points[-1]}", flush=True)
    kept = {seed: read_json(path) for seed, path in paths.items()}
    for seed, one in kept.items():
        if one["config"] != json.loads(json.dumps(values)):
            raise SystemExit(f"{paths[seed]} is of another config: remove it, or name other --runs")
    return {seed: one["points"] for seed, one in kept.items()}


def folder_of(options):
    return options.runs / str(options.steps)


def reached(points, target):
    """Return step and seconds at which a run first has the bpd, linear between evaluations.

    Where it has it at the first evaluation, it had it there or before.
    """
    if points[0]["ema"] <= target:
        return [points[0][k] for k in ("step", "seconds")]
    for before, after in itertools.pairwise(points):
        if after["ema"] <= target:
            share = (before["ema"] - target) / (before["ema"] - after["ema"])
            return [before[k] + share * (after[k] - before[k]) for k in ("step", "seconds")]
    return None


def table(runs, against, split):
    """Print the final bpd of every row, and where it first has that of others, seed by seed."""
    heads = ["row", "seeds", f"{split}, EMA", f"{split}, raw", "s"]
    heads += [f"steps (s) to the final bpd of {other}" for other in against]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for row, of_seeds in runs.items():
        ends = [points[-1] for points in of_seeds.values()]
        cells = [short_runs.cell([end[kind] for end in ends]) for kind in PARAMS]
        cells.append(f"{np.mean([end['seconds'] for end in ends]):.0f}")
        for other in against:
            found = [reached(p, runs[other][seed][-1]["ema"]) for seed, p in of_seeds.items()]
            cells.append(", ".join(f"{f[0]:.0f} ({f[1]:.1f})" if f else "never" for f in found))
        print(f"| {row} | {len(ends)} | {' | '.join(cells)} |")


def draw(runs, out, what="test"):
    """Draw the rows over steps and over seconds, each seed a line; `what` is the split."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2, sharey=True), ("step", "seconds"), strict=True):
        for number, (row, of_seeds) in enumerate(runs.items()):
            for i, points in enumerate(of_seeds.values()):
                x, y = ([point[name] for point in points] for name in (key, "ema"))
                axes.plot(x, y, color=f"C{number}", lw=1, label=row if i == 0 else None)
        axes.set(xlabel=key, xlim=(0, None))
    lowest = min(points[-1]["ema"] for of_seeds in runs.values() for points in of_seeds.values())
    figure.axes[0].set(
        ylabel=f"{what} bits per dimension (EMA)", ylim=(lowest - 0.05, lowest + 1.2)
    )
    figure.axes[1].legend()
    figure.savefig(out, dpi=120)
    print(f"written to {out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated")
    parser.add_argument("--against", help="rows whose final bpd is to be reached")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/recipe"))
    parser.add_argument(
        "--on",
        choices=("test", "validation"),
        default="test",
        help="the split that is looked at: validation to choose, with train.validation_examples",
    )
    parser.add_argument("--picture", type=pathlib.Path, help="a file for the curves of the rows")
    options, flags = parser.parse_known_args()
    if not any(word.partition("=")[0] == "--config" for word in flags):
        flags = [*short_runs.DEMO, "--config.evaluate.levels_per_example=8", *flags]
    rows, seeds = options.rows.split(","), short_runs.seeds(options.seeds)
    against = options.against.split(",") if options.against else [r for r in ROWS[:2] if r in rows]
    if missing := [row for row in against if row not in rows]:
        parser.error(f"--against={missing[0]} is not among the rows")
    try:
        for row in rows:  # a mistake in any of them is found before the first run
            make_config(row, flags, options.steps, 0)
    except UserError as error:
        parser.error(str(error))
    load = splits
    if options.on == "validation":
        load, options.runs = held_out, options.runs / "held_out"
    runs = {}
    for row in rows:
        config = make_config(row, flags, options.steps, seeds[0])
        runs[row] = measure(row, config, seeds, options, load)
    print(f"\n{options.steps} steps")
    table(runs, against, options.on)
    if options.picture:
        draw(runs, options.picture, options.on)


if __name__ == "__main__":
    main()
