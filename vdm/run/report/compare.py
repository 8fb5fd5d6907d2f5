"""The difference of two runs in bits per dimension, paired where they were measured alike.

On the same examples the difference of two means is the mean of differences, whose standard error
leaves out what makes one example harder than another for both: it is often many times smaller than
that of independent means.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vdm.run.evaluation import files, record
from vdm.run.evaluation.record import Result
from vdm.run.report import words
from vdm.run.report.read import Run


class Difference(NamedTuple):
    """A mean with its standard error (None for a single example), and how it was computed."""

    mean: float
    sem: float | None
    paired: bool


def difference(run: Run, ours: Result, other: Run, theirs: Result) -> Difference | str:
    """Return the bits per dimension of `run` less those of `other`, or in words why there is none.

    `ours` and `theirs` are results of the two; they have to be of the same data and bound.
    """
    if problem := incomparable(run, ours, other, theirs):
        return problem
    ids = ours.origin.ids_checksum
    if ids is not None and ids == theirs.origin.ids_checksum:
        first = files.of_examples(run.workdir, ours)
        second = files.of_examples(other.workdir, theirs)
        if first is not None and second is not None and len(first) == len(second):
            mean, sem, _ = record.estimate(first - second)
            return Difference(mean, sem, paired=True)
    sems = ours.bpd.sem, theirs.bpd.sem
    sem = None if sems[0] is None or sems[1] is None else math.hypot(sems[0], sems[1])
    return Difference(ours.bpd.mean - theirs.bpd.mean, sem, paired=False)


def incomparable(run: Run, ours: Result, other: Run, theirs: Result) -> str | None:
    """Return in words why two results are not of the same thing; None where they are."""
    here, there = ours.origin, theirs.origin
    if here.dataset_version != there.dataset_version:
        return f"the data sets differ: {here.dataset_version} and {there.dataset_version}"
    if here.num_dims != there.num_dims:
        return f"the numbers of dimensions differ: {here.num_dims} and {there.num_dims}"
    if run.differential != other.differential:
        return "a density and a probability: the likelihoods are of different kinds"
    given, other_given = run.given(ours), other.given(theirs)
    if given != other_given:
        only = [what for what in (*given, *other_given) if (what in given) != (what in other_given)]
        return f"one is conditioned on {only[0]} of each example, the other is not"
    if here.split != there.split:
        return f"the splits differ: {here.split} and {there.split}"
    if record.kind(ours) != record.kind(theirs):
        return f"the bounds differ: {words.measure(ours)} and {words.measure(theirs)}"
    return None


def config_differences(flat: Sequence[Mapping[str, object]]) -> list[tuple[str, list[str]]]:
    """Return the keys of flat configs whose values differ, with each one's value."""
    keys = sorted({key for values in flat for key in values})
    missing = "–"
    return [
        (key, [words.plain(values[key]) if key in values else missing for values in flat])
        for key in keys
        if any(key not in values or values[key] != flat[0].get(key) for values in flat)
    ]
