"""Samples drawn afresh for the report, each beside its nearest training example."""

from typing import NamedTuple

import numpy as np

from vdm.run import data, sample
from vdm.run.data import condition
from vdm.run.data.dataset import Dataset, settle
from vdm.run.errors import UserError
from vdm.run.report import levels, pictures, words
from vdm.run.report.layout import Figures, Note, Pairs, Part, Table, Text
from vdm.run.report.levels import Curve
from vdm.run.report.nearest import Nearest, nearest, subset
from vdm.run.report.read import Run
from vdm.run.report.restored import Restored

NUM_HELD_OUT = 256  # test examples whose nearest training examples are the yardstick
NUM_POINTS = 1000  # at least, where the data are points in the plane


class Drawn(NamedTuple):
    """Samples and the nearest training examples of them and of held-out examples."""

    x: np.ndarray
    classes: np.ndarray | None
    training: Dataset
    of_samples: Nearest
    of_held_out: Nearest


def draw(run: Run, restored: Restored, num: int) -> Drawn | Note:
    """Return `num` samples by the config's sampler, or a note why there are none."""
    if restored.without_data is not None:
        return Note(f"No samples: {restored.without_data}.")
    if num == 0:
        text = "No samples were drawn for this report."
        return Note(text, f"vdm report --workdir={words.quoted(run.workdir)}")
    trained = restored.trained
    try:
        training, test = (data.load(trained.config.data, split) for split in data.SPLITS)
    except UserError as error:
        return Note(f"No samples: {error}.")
    if training.shape == (2,):
        num = max(num, NUM_POINTS)
    try:
        x = sample.sample(trained, num, trained.config.sample)
    except UserError as error:
        return Note(f"No samples: {error}.")
    training = settle(training, trained.config.data.in_memory)
    told = condition.build(trained.model.network, training, trained.config.data.augment)
    return Drawn(
        x=x,
        classes=None if told.num_classes is None else np.arange(num) % told.num_classes,
        training=training,
        of_samples=nearest(x, training),
        of_held_out=nearest(subset(test, NUM_HELD_OUT), training),
    )


def parts(run: Run, restored: Restored, drawn: Drawn) -> tuple[Part, ...]:
    """Return what the report shows of samples: pictures or points, and distances."""
    shown: list[Part] = [Text(_how(run, drawn))]
    shape, num_levels = drawn.training.shape, restored.trained.model.likelihood.levels
    if num_levels is not None and len(shape) == 3 and shape[-1] in (1, 3):
        shown.append(_pairs(drawn, num_levels))
    elif shape == (2,):
        num = min(NUM_POINTS, len(drawn.x), len(drawn.training))
        points = drawn.training.take(np.arange(num)).x
        panels = (("samples", drawn.x[:num]), ("training examples", points))
        shown.append(Figures(levels.scatter(panels)))
    else:
        kind = "real numbers" if num_levels is None else "integers"
        shown.append(
            Note(
                f"There is no picture of {kind} of shape {list(shape)}; they are had as an array.",
                f"vdm sample --workdir={words.quoted(run.workdir)} --out=samples.npy",
            )
        )
    return (*shown, _distance_table(drawn), Figures((distance_figure([(run.name, drawn)]),)))


def distance_figure(drawn: list[tuple[str, Drawn]]) -> levels.Figure:
    """Return the distances of the samples of named runs beside those of held-out examples."""
    names = ["samples"] if len(drawn) == 1 else [f"samples of {name}" for name, _ in drawn]
    curves = [_shares(name, one.of_samples) for name, (_, one) in zip(names, drawn, strict=True)]
    return levels.distances(
        [*curves, _shares("held-out examples", drawn[0][1].of_held_out)], unit(drawn[0][1])
    )


def unit(drawn: Drawn) -> str:
    """Return what distances are measured in."""
    return (
        "levels of the data" if drawn.training.examples.dtype.kind in "ui" else "units of the data"
    )


def nearer_than_all(drawn: Drawn) -> int:
    """Return how many samples are nearer to the training set than any held-out example."""
    return int((drawn.of_samples.distance < drawn.of_held_out.distance.min()).sum())


def _how(run: Run, drawn: Drawn) -> str:
    settings = run.config.sample
    guided = "" if settings.guidance == 1.0 else f", guidance {words.plain(settings.guidance)}"
    clipped = ", x̂ clipped" if settings.clip_denoised else ""
    classes = "" if drawn.classes is None else ", classes in turn"
    return (
        f"{len(drawn.x):,} samples drawn for this report: sampler {settings.sampler}, "
        f"{settings.num_steps:,} steps{guided}{clipped}, seed {settings.seed}{classes}; averaged "
        "parameters."
    )


def _pairs(drawn: Drawn, num_levels: int) -> Pairs:
    copies = drawn.training.take(drawn.of_samples.position).x
    rows = []
    for i, (x, copy) in enumerate(zip(drawn.x, copies, strict=True)):
        told = "" if drawn.classes is None else f" of class {drawn.classes[i]}"
        where = drawn.of_samples.position[i]
        rows.append(
            (
                pictures.picture(x, num_levels, f"sample {i + 1}{told}"),
                pictures.picture(copy, num_levels, f"training example {where}, its nearest"),
                f"{drawn.of_samples.distance[i]:.3g}"
                + ("" if drawn.classes is None else f" · class {drawn.classes[i]}"),
            )
        )
    return Pairs(
        "Samples, and below each its nearest training example with the Euclidean distance between "
        f"the two, in {unit(drawn)}.",
        tuple(rows),
    )


def _distance_table(drawn: Drawn) -> Table:
    rows = tuple(
        (
            name,
            f"{len(found.distance):,}",
            *(f"{value:.3g}" for value in np.quantile(found.distance, [0.0, 0.5, 1.0])),
        )
        for name, found in (
            ("samples", drawn.of_samples),
            ("held-out examples", drawn.of_held_out),
        )
    )
    nearer = nearer_than_all(drawn)
    return Table(
        f"Distance to the nearest of {len(drawn.training):,} training examples, in {unit(drawn)}. "
        f"{nearer} of {len(drawn.x):,} samples {'is' if nearer == 1 else 'are'} nearer than any "
        "of the held-out examples.",
        ("", "n", "least", "median", "largest"),
        rows,
    )


def _shares(name: str, found: Nearest) -> Curve:
    distance = np.sort(found.distance)
    share = np.arange(1, len(distance) + 1) / len(distance)
    return Curve(name, np.concatenate([distance[:1], distance]), np.concatenate([[0.0], share]))
