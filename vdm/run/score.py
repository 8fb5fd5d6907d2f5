"""Scoring a file: the bits of each of its examples, and where they stand among the run's data."""

import dataclasses
import pathlib
from typing import NamedTuple

from vdm.condition import Conditions
from vdm.run.config import EvaluateConfig
from vdm.run.data import asked as asks, chosen, condition as conditions, side_file, whole
from vdm.run.data.beside import Called
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import Dataset, with_parts
from vdm.run.data.stores.names import OWN
from vdm.run.data.whole import Whole
from vdm.run.errors import UserError
from vdm.run.evaluation import ode
from vdm.run.run import Run
from vdm.run.scoring import files, given, ranks, scores
from vdm.run.scoring.ranks import Ranks
from vdm.run.scoring.scores import Scores
from vdm.run.system import processes
from vdm.run.system.files import check_writable
from vdm.run.system.progress import say
from vdm.run.training import checks

NONE = chosen.Options()


class Scored(NamedTuple):
    """The scores of a file, the names of its images, the ranks among the splits, and how precise.

    `precision` is how float32 was multiplied.
    """

    scores: Scores
    names: tuple[str, ...] | None
    ranks: list[Ranks]
    precision: str


def score(
    run: Run,
    source: pathlib.Path,
    out: pathlib.Path,
    settings: EvaluateConfig,
    workdir: pathlib.Path,
    asked: chosen.Options = NONE,
) -> Scored:
    """Score all examples of a file or a folder of images, and write a row for each to `out`.

    The noise follows from the settings' seed. Conditions are those that are `asked` for, or of the
    file. Raises UserError for what is not of the kind that the
    run models, and for a file that cannot be read or written.
    """
    files.check_target(out, source)
    # An error before the work, not after.
    processes.first_alone(lambda: check_writable(out.parent))
    checks.check_unconditional(run.model, settings.unconditional)
    found = whole.load(source)
    condition, data = _fitted(run, found, source, settings, asked)
    settings = dataclasses.replace(settings, unconditional=condition != run.condition)
    made = scores.of_dataset(
        run, data, condition, settings, settings.seed, what=f"score {source.name}"
    )
    among, missing = ranks.of_splits(made, run, settings, workdir)
    for line in missing:
        say(line)
    processes.first_alone(lambda: files.write(out, files.columns(made, found.names, among)))
    precision = settings.precision if settings.bound == "vlb" else ode.PRECISION
    return Scored(made, found.names, among, precision)


def _fitted(
    run: Run, found: Whole, source: pathlib.Path, settings: EvaluateConfig, asked: chosen.Options
) -> tuple[Condition, Dataset]:
    """Return what the model is given of the examples, and these with their conditions.

    Raises UserError where they do not fit.
    """
    data, known = found.data, run.condition
    given.check_type(run, data.examples.dtype, str(source))
    if data.points is not None and known.points is not None:
        data = given.fitting(run, data)
    checks.check_data(run.model, run.shape, known.without(), data)
    if settings.unconditional:
        if asked.first is not None:
            raise UserError(f"{asked.first} is given beside --unconditional: expected one of them")
        return known.without(), data
    beside = found.beside
    if asked.first is None and source.is_dir():
        vectors = side_file.read(data, source, run.model.network, known.vector_names)
        if vectors is not None:
            beside = beside._replace(vector=vectors.values)
            data = with_parts(data, Conditions(vector=vectors.values))
    for kind, _, array in conditions.KINDS:
        part = getattr(beside, kind)
        if part is not None and kind not in known.names and kind != "label":
            raise UserError(
                f"{source} ({array}) would not be used: this model has no {asks.WORDS[kind]}"
            )
    parts = {kind: part for kind, part in beside._asdict().items() if kind in known.names}
    there = Conditions(**parts) if any(part is not None for part in parts.values()) else None
    typed = chosen.read(asked, known, len(data), run.shape, f"example of {source}")
    if typed is not None:
        if there is not None:
            raise UserError(
                f"{asked.first} is given, and {source} has conditions too: expected one of them"
            )
        return known, with_parts(data, typed)
    if not known.names:
        return known, data  # classes of a file are passed over, as those of a data set are
    if found.names is not None and found.beside.label is not None:
        labels = Condition(known.num_classes, known.num_flags)
        conditions.check(labels, data)  # another number of folders would be other classes
    called = chosen.IN_ALL
    if there is not None:
        called = Called(*(f"{source} ({name})" for name in OWN))
    elif conditions.is_optional(run.model.network):
        say("scored without conditions, as --unconditional asks: the model was trained so too")
    _, condition = given.parts(run, there, len(data), called)
    return condition, data
