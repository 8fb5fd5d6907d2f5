"""New samples for the report, each with its nearest training example.

Where the data set is not available they are shown alone.
"""

from typing import NamedTuple

import numpy as np

from vdm.condition import Conditions
from vdm.run import data, sample, views
from vdm.run.data.dataset import Dataset, settle
from vdm.run.errors import UserError
from vdm.run.report import levels, pictures, words
from vdm.run.report.layout import Columns, Figures, Gallery, Note, Part, Table, Text
from vdm.run.report.levels import Curve
from vdm.run.report.nearest import Nearest, nearest, subset
from vdm.run.report.read import Run
from vdm.run.report.restored import Restored
from vdm.run.trained import Trained, dataset

NUM_HELD_OUT = 256  # test examples that the distances of samples are compared with
NUM_POINTS = 1000  # at least, where the data are points in the plane
MOST_NUMBERS = 6  # of a vector in a caption


class Neighbours(NamedTuple):
    """The nearest training examples of samples and of held-out examples."""

    training: Dataset
    of_samples: Nearest
    of_held_out: Nearest


class Drawn(NamedTuple):
    """Samples, and their nearest training examples or a note why there are none."""

    x: np.ndarray
    given: Conditions  # in the user's units
    neighbours: Neighbours | Note


def draw(run: Run, restored: Restored, num: int) -> Drawn | Note:
    """Return `num` samples by the config's sampler, or a note why there are none."""
    if num == 0:
        text = "No samples were drawn for this report."
        return Note(text, f"vdm report --workdir={words.quoted(run.workdir)}")
    trained = restored.trained
    if trained.condition.points is not None:
        text = "Sets of points are not drawn here; this command draws them."
        return Note(text, f"vdm sample --workdir={words.quoted(run.workdir)} --out=samples.png")
    if trained.shape == (2,):
        num = max(num, NUM_POINTS)
    try:
        x = sample.sample(trained, num, trained.config.sample)
    except UserError as error:
        return Note(f"No samples: {error}.")
    return Drawn(x, trained.condition.samples(np.arange(num)), _neighbours(x, trained))


def _neighbours(x: np.ndarray, run: Trained) -> Neighbours | Note:
    try:
        training, test = (dataset(run, split) for split in data.SPLITS)
    except UserError as error:
        return Note(f"The samples are not compared with the data: {error}.")
    training = settle(training, run.config.data.in_memory)
    held_out = nearest(subset(test, NUM_HELD_OUT), training)
    return Neighbours(training, nearest(x, training), held_out)


def parts(run: Run, restored: Restored, drawn: Drawn) -> tuple[Part, ...]:
    """Return what the report shows of samples: pictures or points, and distances."""
    shown: list[Part] = [Text(_how(run, drawn))]
    shape, found = drawn.x.shape[1:], drawn.neighbours
    num_levels = restored.trained.model.likelihood.levels
    if views.has_picture(shape):
        plain = isinstance(found, Note) and _field(drawn) is None
        shown.append((_gallery if plain else _columns)(drawn, num_levels))
    elif views.form(shape) == "points":
        shown.append(Figures(levels.scatter(_panels(drawn))))
    else:
        kind = "Real numbers" if num_levels is None else "Integers"
        shown.append(
            Note(
                f"{kind} of shape {list(shape)} cannot be drawn; this command writes them as an "
                "array.",
                f"vdm sample --workdir={words.quoted(run.workdir)} --out=samples.npy",
            )
        )
    if isinstance(found, Note):
        return (*shown, found)
    table = _distance_table(found, _of_training(drawn.given))
    return (*shown, table, Figures((distance_figure([(run.name, found)]),)))


def _panels(drawn: Drawn) -> list[tuple[str, np.ndarray]]:
    if isinstance(drawn.neighbours, Note):
        return [("samples", drawn.x)]
    training = drawn.neighbours.training
    num = min(NUM_POINTS, len(drawn.x), len(training))
    return [("samples", drawn.x[:num]), ("training examples", training.take(np.arange(num)).x)]


def distance_figure(drawn: list[tuple[str, Neighbours]]) -> levels.Figure:
    """Return the distances of the samples of named runs, with those of held-out examples."""
    names = ["samples"] if len(drawn) == 1 else [f"samples of {name}" for name, _ in drawn]
    curves = [_shares(name, one.of_samples) for name, (_, one) in zip(names, drawn, strict=True)]
    return levels.distances(
        [*curves, _shares("held-out examples", drawn[0][1].of_held_out)], unit(drawn[0][1])
    )


def unit(found: Neighbours) -> str:
    """Return what distances are measured in."""
    integers = found.training.examples.dtype.kind in "ui"
    return "levels of the data" if integers else "units of the data"


def nearer_than_all(drawn: Neighbours) -> int:
    """Return how many samples are nearer to the training set than any held-out example."""
    return int((drawn.of_samples.distance < drawn.of_held_out.distance.min()).sum())


def _how(run: Run, drawn: Drawn) -> str:
    settings = run.config.sample
    guided = "" if settings.guidance == 1.0 else f", guidance {words.plain(settings.guidance)}"
    clipped = ", x̂ clipped" if settings.clip_denoised else ""
    given = ""
    if _of_training(drawn.given):
        given = ", conditions of training examples"
    elif drawn.given.label is not None:
        given = ", classes 0, 1, 2, … in order"
    return (
        f"{len(drawn.x):,} samples drawn for this report: sampler {settings.sampler}, "
        f"{settings.num_steps:,} steps{guided}{clipped}, seed {settings.seed}{given}; averaged "
        "parameters."
    )


def _of_training(given: Conditions) -> bool:
    """Return whether conditions are those that the run has kept of its training examples."""
    return given.vector is not None or given.field is not None


def _gallery(drawn: Drawn, num_levels: int | None) -> Gallery:
    seen = views.of(drawn.x[: pictures.MOST_CELLS], views.ends(drawn.x, num_levels))
    cells = tuple(
        pictures.picture(view, f"sample {i + 1}{_of(drawn, i)}") for i, view in enumerate(seen)
    )
    return Gallery("Samples.", (("", cells),))


def _of(drawn: Drawn, i: int) -> str:
    said = _condition(drawn, i)
    return f" of {said}" if said else ""


def _condition(drawn: Drawn, i: int) -> str:
    """Return what a sample is conditioned on in words, a vector by its first numbers."""
    label, vector, _, _ = drawn.given
    said = [] if label is None else [f"class {label[i]}"]
    if vector is not None:
        numbers = [f"{value:.4g}" for value in vector[i][:MOST_NUMBERS]]
        said.append(f"({', '.join(numbers)}{', …' * (len(vector[i]) > MOST_NUMBERS)})")
    return " and ".join(said)


def _columns(drawn: Drawn, num_levels: int | None) -> Columns:
    """Return each sample above its nearest training example and the field that it was given."""
    found, field, num = drawn.neighbours, _field(drawn), len(drawn.x)
    texts = [[f"sample {i + 1}{_of(drawn, i)}" for i in range(num)]]
    said, caption, seen = [""] * num, "Samples.", [drawn.x]
    if not isinstance(found, Note):
        seen.append(found.training.take(found.of_samples.position).x)
        texts.append([f"training example {i}, its nearest" for i in found.of_samples.position])
        said = [f"{distance:.3g}" for distance in found.of_samples.distance]
        caption += (
            " Below each is its nearest training example, with the Euclidean distance between the "
            f"two in {unit(found)}."
        )
    between = views.ends(np.concatenate(seen), num_levels)
    rows = [views.of(x, between) for x in seen]
    if field is not None:
        rows.append(views.of(field, views.ends(field, None)))
        texts.append([f"the field that sample {i + 1} was given" for i in range(num)])
        caption += " The last picture of each column is the field that the sample was given."
    columns = []
    for i in range(num):
        cells = [pictures.picture(row[i], text[i]) for row, text in zip(rows, texts, strict=True)]
        line = " · ".join(filter(None, (said[i], _condition(drawn, i))))
        columns.append((tuple(cells), line))
    return Columns(caption, tuple(columns))


def _field(drawn: Drawn) -> np.ndarray | None:
    """Return the fields that samples were given, where they can be seen as pictures."""
    if drawn.given.field is None:
        return None
    found = np.asarray(drawn.given.field)
    return found if views.has_picture(found.shape[1:]) else None


def _distance_table(found: Neighbours, of_training: bool) -> Table:
    rows = tuple(
        (
            name,
            f"{len(one.distance):,}",
            *(f"{value:.3g}" for value in np.quantile(one.distance, [0.0, 0.5, 1.0])),
        )
        for name, one in (
            ("samples", found.of_samples),
            ("held-out examples", found.of_held_out),
        )
    )
    nearer, num = nearer_than_all(found), len(found.of_samples.distance)
    return Table(
        f"Distance to the nearest of {len(found.training):,} training examples, in {unit(found)}. "
        f"{nearer} of {num:,} samples {'is' if nearer == 1 else 'are'} nearer than any of the "
        "held-out examples."
        + " The samples were given conditions of training examples, and are near these for that "
        "reason too." * of_training,
        ("", "n", "least", "median", "largest"),
        rows,
    )


def _shares(name: str, found: Nearest) -> Curve:
    distance = np.sort(found.distance)
    share = np.arange(1, len(distance) + 1) / len(distance)
    return Curve(name, np.concatenate([distance[:1], distance]), np.concatenate([[0.0], share]))
