"""A race: training runs on the same batches, and the bound along each of them.

Rows of a race differ in their config only. They are trained on the same examples, less those held
out; the bound is watched at even steps, with the same noise for all, on what is held out or on the
test split; the other of the two is evaluated once, at the end. Choices are to be made by what is
held out.

Finished runs are kept in a folder and not repeated, so a race may be stopped and started again.
Seconds are the processor's own on a CPU, whatever else runs there, and the clock's on an
accelerator; compiling and evaluating are not counted.
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

import short_runs
from vdm.run import config as configs, data
from vdm.run.data import validation
from vdm.run.data.dataset import Dataset, settle
from vdm.run.errors import UserError
from vdm.run.evaluation import bound
from vdm.run.system.files import read_json, write_json
from vdm.run.trained import Trained
from vdm.run.training import parts, program as programs, statistics
from vdm.run.training.batches import on_devices
from vdm.run.training.step import init_state, train_step

WATCHED = ("validation", "test")
EVALUATIONS = 10  # along a run, at even steps
BLOCKS, PER_BLOCK = 5, 5  # steps that are timed to plan a run of so many seconds
TEST_EXAMPLES = 1000  # of a test split at most, evenly spaced
CIFAR10 = (
    "--config=experiments/cifar10_small.py",
    "--config.train.validation_examples=1000",
    "--config.evaluate.levels_per_example=1",
    "--config.evaluate.batch_size=128",
)
# Of each set: the network, the batch, and how many examples are held out of training.
SETS = {
    "digits": (
        *short_runs.DEMO,
        "--config.train.validation_examples=300",
        "--config.evaluate.levels_per_example=8",
    ),
    "mnist": (
        "--config=experiments/mnist.py",
        "--config.train.batch_size=16",
        "--config.train.validation_examples=1000",
        "--config.evaluate.batch_size=128",
    ),
    "patches64": (
        "--config=experiments/patches64.py",
        "--config.evaluate.levels_per_example=16",
        "--config.evaluate.batch_size=8",
    ),
    # 32 channels, two blocks a side, batches of 8; and 64 channels, four blocks, batches of 16.
    "cifar10": (
        *CIFAR10,
        "--config.model.network.num_blocks=2",
        "--config.train.batch_size=8",
    ),
    "cifar10_64": (
        *CIFAR10,
        "--config.model.network.num_blocks=4",
        "--config.model.network.channels=64",
        "--config.train.batch_size=16",
    ),
}


class Splits(NamedTuple):
    """What to train on, what to watch along a run, and by its name what to evaluate at the end."""

    training: Dataset
    watched: Dataset
    last: dict[str, Dataset]


class Runner(NamedTuple):
    """What the runs of a row share: their first state and step for a seed, and what they take."""

    init: Callable
    step: Callable
    batches: Callable
    bpd: Callable
    last: dict[str, Dataset]


def splits(config, on="validation"):
    """Return the splits of a config that watches the held-out examples, or the test split."""
    test = data.load(config.data, "test")
    if len(test) > TEST_EXAMPLES:
        test = test.subset(np.linspace(0, len(test) - 1, TEST_EXAMPLES).round().astype(int))
    if config.data.name.startswith("patches64:"):
        # Patches overlap: those drawn at random would be half known.
        whole = data.load(config.data, "train")
        trained, held_out = (whole.subset(index) for index in strips(len(whole)))
        held_out = held_out.named("validation")
    else:
        trained, held_out = (validation.load(config, part) for part in ("train", "validation"))
    found = {"validation": held_out, "test": test}
    return Splits(trained, found.pop(on), found)


def strips(size):
    """Return which patches to train on, and which to hold out: the last 64 columns, no overlap."""
    rows, columns, patch = 46, 57, 8  # a patch is 8 strides wide
    assert size == 2 * rows * columns, "of experiments/patches64.py"
    _, row, column = np.indices((2, rows, columns))
    last = column == columns - 1
    return np.flatnonzero(column < columns - patch), np.flatnonzero(last & (row % patch == 0))


def prepared(config, found):
    """Return the runner of a config on its splits, with its step compiled once for all seeds."""
    dataset, trainer, condition, mesh, example = parts.of(config, found.training)
    dataset, watched = (settle(part, config.data.in_memory) for part in (dataset, found.watched))
    template = programs.template(trainer, mesh, example)
    places = jax.tree.map(lambda leaf: leaf.sharding, template)

    def with_seed(seed):
        return trainer._replace(config=dataclasses.replace(config, seed=seed))

    def batches(seed):
        return on_devices(dataset, condition, dataclasses.replace(config, seed=seed), mesh, 0)

    drawn = jax.jit(
        lambda seed: init_state(with_seed(seed), example),
        out_shardings=places,
        compiler_options={"xla_backend_optimization_level": 0},  # as `vdm train` does
    )

    def init(seed):
        return statistics.measured(drawn(seed), trainer, dataset)

    step = jax.jit(
        lambda state, batch, seed: train_step(state, batch, trainer=with_seed(seed))[0],
        donate_argnums=0,
        out_shardings=places,
    )
    step = step.lower(init(0), next(batches(0)), 0).compile()
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

    return Runner(init, step, batches, bpd, found.last)


def clock():
    """Return the seconds that a run is measured in."""
    # Two processes on one core would see each other's seconds; not those of its own work.
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


def learn(config, seeds, found):
    """Train for each seed, all by one compilation; yield the bpd and seconds along each run."""
    runner = prepared(config, found)
    ends = {round(config.train.num_steps * i / EVALUATIONS) for i in range(1, EVALUATIONS + 1)}
    for seed in seeds:
        state, points, seconds, started = runner.init(seed), [], 0.0, None
        for done, batch in enumerate(runner.batches(seed), 1):
            if started is None:
                started = clock()
            state = runner.step(state, batch, seed)
            if done in ends:
                jax.block_until_ready(state)
                seconds += clock() - started
                bpd = runner.bpd(state.ema, state)
                points.append({"step": done, "seconds": seconds, "ema": bpd})
                started = None
        points[-1]["raw"] = runner.bpd(state.params, state)
        points[-1] |= {name: runner.bpd(state.ema, state, x) for name, x in runner.last.items()}
        yield points


def pace(config, load):
    """Return the seconds that a step takes, the median over a few blocks of steps."""
    runner = prepared(config, load())
    state, batches, taken = runner.init(0), runner.batches(0), []
    for _ in range(BLOCKS):
        started = clock()
        for batch in itertools.islice(batches, PER_BLOCK):
            state = runner.step(state, batch, 0)
        jax.block_until_ready(state)
        taken.append((clock() - started) / PER_BLOCK)
    return float(np.median(taken[1:]))


def planned(config, seconds, path, load):
    """Return the config with as many steps as take so many seconds.

    The pace is measured once and kept in a file, for the same config at any rate. Raises UserError
    for a file of another config.
    """
    like = _without_rate(config)
    if not path.exists():
        write_json(path, {"config": like, "seconds_per_step": pace(config, load)})
    kept = read_json(path)
    if kept["config"] != like:
        raise UserError(f"{path} is of another config: remove it, or name other --runs")
    num_steps = max(EVALUATIONS, round(seconds / kept["seconds_per_step"]))
    return short_runs.changed(
        config,
        {
            "train.num_steps": num_steps,
            "optimizer.ema_decay": short_runs.ema_decay(num_steps),
        },
    )


def _without_rate(config):
    """Return the values of a config that the time of a step may depend on."""
    values = configs.to_dict(config)
    values["backend"] = jax.default_backend()
    del values["seed"], values["train"]["num_steps"]
    for key in ("learning_rate", "schedule_learning_rate", "ema_decay"):
        del values["optimizer"][key]
    return json.loads(json.dumps(values))


def measure(row, config, seeds, folder, load):
    """Train the runs of a row that are not there yet; return the points of each seed.

    `load()` gives the splits where there is something to train. Raises UserError for a run that is
    there with another config, and where a bound is not finite.
    """
    values = configs.to_dict(config)
    del values["seed"]
    paths = {seed: folder / f"{row.replace('/', '_of_')}_{seed}.json" for seed in seeds}
    missing = [seed for seed in seeds if not paths[seed].exists()]
    made = learn(config, missing, load()) if missing else ()
    for seed, points in zip(missing, made, strict=True):
        write_json(paths[seed], {"config": values, "points": points})
        print(f"{row}, seed {seed}: {points[-1]}", flush=True)
    kept = {seed: read_json(path) for seed, path in paths.items()}
    for seed, one in kept.items():
        if one["config"] != json.loads(json.dumps(values)):
            raise UserError(f"{paths[seed]} is of another config: remove it, or name other --runs")
    return {seed: one["points"] for seed, one in kept.items()}


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


def at(points, seconds):
    """Return the bound of a run at some seconds, linear between evaluations; NaN before them."""
    times, values = ([point[key] for point in points] for key in ("seconds", "ema"))
    return float(np.interp(seconds, times, values, left=np.nan))


def draw(runs, out, what):
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
