"""A data set that is the user's own function: `package.module:function` in place of a name.

It is called with the name of a split, "train" or "test", and with data.path as `path` if it takes
that. It returns the examples, the batch axis first, or them and the class of each, or them and a
dict of what they are conditioned on: labels, vectors (cond) and fields (cond_field). Sets of points
have a mask, or lengths, among these (`vdm.run.data.point_sets`).
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from vdm.choices import unknown
from vdm.condition import Conditions
from vdm.run.config import own
from vdm.run.config.words import SPLITS
from vdm.run.data import arrays, point_sets
from vdm.run.data.beside import Called
from vdm.run.data.dataset import Dataset
from vdm.run.data.stores.names import OWN
from vdm.run.errors import UserError

KEY = "data.name"
KEYS = (*OWN, *point_sets.FORMS)


def load(name: str, path: str, split: str) -> Dataset:
    """Return a split of a user's own data set.

    Raises UserError for what is no such function, for an error in it, and for examples that are not
    of the form that those of files have.
    """
    function = own.load(KEY, name)
    takes_path = "path" in inspect.signature(function).parameters
    if path and not takes_path:
        raise UserError(f"data.path is set, but {name} takes no argument `path`")
    found = {}
    for part in SPLITS:
        try:
            given = function(part, path=path) if takes_path else function(part)
        # The user's own code: whatever it raises, the user has to mend.
        except Exception as error:
            raise UserError(f"{name}({part!r}) raised {type(error).__name__}: {error}") from error
        found[part] = _named(given, f"{name}({part!r})")
    if any({*point_sets.FORMS} & {*arrays_of} for arrays_of in found.values()):
        made = point_sets.of_splits(found, split, version=f"own/{name}", what=name)
        return dataclasses.replace(made, name=name, taken="")
    return _of_one_shape(
        name, {part: _beside(one, f"{name}({part!r})") for part, one in found.items()}, split
    )


def _of_one_shape(
    name: str, found: Mapping[str, tuple[np.ndarray, Conditions]], split: str
) -> Dataset:
    """Return a split of examples of one shape; raises UserError for others."""
    kinds = {part: _kind(*given) for part, given in found.items()}
    if len(set(kinds.values())) > 1:
        raise UserError(f"{name}: training and test examples differ in kind: {kinds}")
    x, beside = found[split]
    what = f"{name}({split!r})"
    labels = None if beside.label is None else np.asarray(beside.label)
    called = Called(*(f"{what} ({key})" for key in OWN))
    made = arrays.conditioned(arrays.given(x, labels, what), beside, called)
    every = [part.label for _, part in found.values() if part.label is not None]
    classes = 1 + max(int(part.max()) for part in every) if every else None
    return dataclasses.replace(
        made, name=name, split=split, version=f"own/{name}", num_classes=classes
    )


def _kind(x: np.ndarray, beside: Conditions) -> tuple[Any, ...]:
    """Return what training and test examples must have in common."""
    shapes = (None if part is None else part.shape[1:] for part in beside[1:])
    return x.dtype.kind, x.shape[1:], beside.label is None, *shapes


def _named(given: Any, what: str) -> dict[str, np.ndarray]:
    """Return the arrays of a split by name, x among them."""
    x, others = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    named = dict(others) if isinstance(others, dict) else {"labels": others}
    for key in named:
        if key not in KEYS:
            raise UserError(f"{what}: {unknown('key', str(key), KEYS)}")
    try:
        found = {key: np.asarray(part) for key, part in named.items() if part is not None}
        x = np.asarray(x)
    except ValueError as error:
        raise UserError(f"{what} returned no array: {error}") from error
    if x.dtype.kind not in "biuf":
        raise UserError(
            f"{what} must return an array of numbers, a pair of it and classes, or a pair of it "
            f"and a dict of {', '.join(KEYS)}: got {type(given).__name__} of {x.dtype}"
        )
    return {"x": x, **found}


def _beside(given: Mapping[str, np.ndarray], what: str) -> tuple[np.ndarray, Conditions]:
    """Return examples of one shape and what each is conditioned on."""
    x, labels = given["x"], given.get("labels")
    if labels is not None:
        arrays.check_labels(labels, len(x) if x.ndim else 0, f"{what} (labels)")
        labels = labels.astype(np.int32)
    return x, Conditions(labels, given.get("cond"), given.get("cond_field"))
