"""Scoring a file: the bits of each of its examples, and where they stand among the run's data."""

import dataclasses
import pathlib
from typing import NamedTuple

from vdm.run.config import EvaluateConfig
from vdm.run.data import condition as conditions, whole
from vdm.run.data.condition import Condition
from vdm.run.data.whole import Whole
from vdm.run.evaluation import ode
from vdm.run.run import Run
from vdm.run.scoring import files, given, ranks, scores
from vdm.run.scoring.ranks import Ranks
from vdm.run.scoring.scores import Scores
from vdm.run.system import processes
from vdm.run.system.files import check_writable
from vdm.run.system.progress import say
from vdm.run.training import checks


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
) -> Scored:
    """Score all examples of a file or a folder of images, and write a row for each to `out`.

    The noise follows from the settings' seed. Raises UserError for what is not of the kind that the
    run models, and for a file that cannot be read or written.
    """
    files.check_target(out, source)
    # An error before the work, not after.
    processes.first_alone(lambda: check_writable(out.parent))
    checks.check_unconditional(run.model, settings.unconditional)
    found = whole.load(source)
    condition = _fitted(run, found, source, settings)
    settings = dataclasses.replace(settings, unconditional=condition != run.condition)
    made = scores.of_dataset(
        run, found.data, condition, settings, settings.seed, what=f"score {source.name}"
    )
    among, missing = ranks.of_splits(made, run, settings, workdir)
    for line in missing:
        say(line)
    processes.first_alone(lambda: files.write(out, files.columns(made, found.names, among)))
    precision = settings.precision if settings.bound == "vlb" else ode.PRECISION
    return Scored(made, found.names, among, precision)


def _fitted(run: Run, found: Whole, source: pathlib.Path, settings: EvaluateConfig) -> Condition:
    """Return what the model is given of the examples; raises UserError where they do not fit."""
    data = found.data
    given.check_type(run, data.examples.dtype, str(source))
    checks.check_data(run.model, run.shape, Condition(), data)
    if settings.unconditional:
        return Condition()
    if run.condition.num_classes is None:
        return run.condition  # classes of a file are passed over, as those of a data set are
    if found.names is not None and found.labels is not None:
        conditions.check(run.condition, data)  # another number of folders would be other classes
    _, condition = given.classes(run, found.labels, len(data), "labels")
    return condition
