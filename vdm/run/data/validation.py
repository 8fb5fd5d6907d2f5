"""The validation split: training examples that a run holds out, to be watched while it trains.

The test split is left for the end: whoever chooses a checkpoint by it has no test any more.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from vdm.run import data
from vdm.run.config import Config, own
from vdm.run.config.words import VALIDATION
from vdm.run.data import moments
from vdm.run.data.dataset import Dataset, chunks
from vdm.run.data.moments import Moments
from vdm.run.errors import UserError


def load(config: Config, split: str) -> Dataset:
    """Return a split of a run's data set, with train.validation_examples held out of training.

    Raises UserError as `vdm.run.data.load`, for the validation split of a run without one, and for
    one that leaves nothing to train on.
    """
    num = config.train.validation_examples
    name = config.data.name
    ours = name in data.DATASETS or name in data.FILES or own.is_own_set(name)
    # Those of tensorflow-datasets may have a split of this name themselves.
    if split not in ("train", VALIDATION) or (not num and (split == "train" or not ours)):
        return data.load(config.data, split)
    if not num:
        raise UserError(
            "this run has no split 'validation': it was trained with train.validation_examples=0"
        )
    whole = data.load(config.data, "train")
    if num >= len(whole):
        raise UserError(
            f"train.validation_examples is {num:,}, but the train split of {whole.name} has "
            f"{len(whole):,} examples: expected fewer"
        )
    found = whole.subset(positions(len(whole), num, held_out=split == VALIDATION))
    if split == VALIDATION:
        return found.named(VALIDATION)
    if whole.moments is None and whole.vector is None and whole.field is None:
        return found
    # What is held out has no part in the scales that training finds.
    real = whole.moments is not None
    parts = [
        [None if values is None else moments.of(values) for values in columns]
        for one in map(found.take, chunks(found.examples))
        for columns in [(one.x if real else None, one.vector, one.field)]
    ]
    own_x, vector, field = (_joined(column) for column in zip(*parts, strict=True))
    if whole.moments is not None and own_x is not None:
        own_x = own_x._replace(rounding=whole.moments.rounding)
    return dataclasses.replace(found, moments=own_x, vector=vector, field=field)


def _joined(parts: Sequence[Moments | None]) -> Moments | None:
    there = [part for part in parts if part is not None]
    return functools.reduce(moments.join, there) if there else None


def positions(size: int, num: int, *, held_out: bool) -> np.ndarray:
    """Return which of `size` examples are among the `num` held out, or which are not, in order.

    It is a draw without replacement that depends on the two numbers alone.
    """
    # RandomState: the one stream that NumPy promises never to change.
    order = np.random.RandomState(1).permutation(size)
    return np.sort(order[:num] if held_out else order[num:])
