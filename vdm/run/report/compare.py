"""The difference of two runs in bits per dimension, paired where they were measured alike.

On the same examples the difference of two means is the mean of differences, whose standard error
leaves out all that makes one example harder than another for both: it is often many times smaller
than that of independent means.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from vdm.run.report import words
from vdm.run.report.read import Run, per_example

Record = dict[str, Any]


class Difference(NamedTuple):
    """A mean with its standard error (None where one example tells nothing), and how it was had."""

    mean: float
    sem: float | None
    paired: bool


def difference(run: Run, record: Record, other: Run, theirs: Record) -> Difference | str:
    """Return the bits per dimension of `run` less those of `other`, or in words why there is none.

    `record` and `theirs` are results of the two; they have to be of the same data and bound.
    """
    if problem := incomparable(run, record, other, theirs):
        return problem
    ids = record.get("ids_checksum")
    if ids is not None and ids == theirs.get("ids_checksum"):
        ours, others = per_example(run, record), per_example(other, theirs)
        if ours is not None and others is not None:
            each = ours - others
            n = len(each)
            sem = float(each.std(ddof=1) / math.sqrt(n)) if n > 1 else None
            return Difference(float(each.mean()), sem, paired=True)
    sems = record["bpd"]["sem"], theirs["bpd"]["sem"]
    return Difference(
        record["bpd"]["mean"] - theirs["bpd"]["mean"],
        None if None in sems else float(np.hypot(*sems)),
        paired=False,
    )


def incomparable(run: Run, record: Record, other: Run, theirs: Record) -> str | None:
    """Return in words why two results are not of the same thing; None where they are."""
    for name, key in (("data set", "dataset_version"), ("number of dimensions", "num_dims")):
        if record.get(key) != theirs.get(key):
            return f"another {name}: {record.get(key)} and {theirs.get(key)}"
    if run.differential != other.differential:
        return "a density and a probability: the likelihoods are of different kinds"
    if run.given_classes != other.given_classes:
        return "one is given the class of each example, the other is not"
    if record["split"] != theirs["split"]:
        return f"another split: {record['split']} and {theirs['split']}"
    if words.kind_of(record) != words.kind_of(theirs):
        return f"another bound: {words.measure(record)} and {words.measure(theirs)}"
    return None


def config_differences(flat: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the keys of flat configs whose values differ, with each one's value."""
    keys = sorted({key for values in flat for key in values})
    missing = "–"
    return [
        (key, [words.plain(values[key]) if key in values else missing for values in flat])
        for key in keys
        if any(key not in values or values[key] != flat[0].get(key) for values in flat)
    ]
