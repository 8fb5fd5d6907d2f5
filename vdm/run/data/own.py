"""A data set that is the user's own function: `package.module:function` in place of a name.

It is called with the name of a split, "train" or "test", and with data.path as `path` if it takes
that. It returns the examples, the batch axis first, or them and the class of each, or them and a
dict of what they are conditioned on: labels, vectors (cond) and fields (cond_field).
"""

import dataclasses
import inspect
from typing import Any

import numpy as np

from vdm.choices import unknown
from vdm.condition import Conditions
from vdm.run.config import own
from vdm.run.config.words import SPLITS
from vdm.run.data import arrays
from vdm.run.data.beside import Called
from vdm.run.data.dataset import Dataset
from vdm.run.data.stores.names import OWN
from vdm.run.errors import UserError

KEY = "data.name"


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
        found[part] = _parts(given, f"{name}({part!r})")
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


def _parts(given: Any, what: str) -> tuple[np.ndarray, Conditions]:
    x, others = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    named = dict(others) if isinstance(others, dict) else {"labels": others}
    for key in named:
        if key not in OWN:
            raise UserError(f"{what}: {unknown('key', str(key), OWN)}")
    try:
        x = np.asarray(x)
        beside = {key: None if part is None else np.asarray(part) for key, part in named.items()}
    except ValueError as error:
        raise UserError(f"{what} returned no array: {error}") from error
    if x.dtype.kind not in "biuf":
        raise UserError(
            f"{what} must return an array of numbers, a pair of it and classes, or a pair of it "
            f"and a dict of {', '.join(OWN)}: got {type(given).__name__} of {x.dtype}"
        )
    labels = beside.get("labels")
    if labels is not None:
        arrays.check_labels(labels, len(x) if x.ndim else 0, f"{what} (labels)")
        labels = labels.astype(np.int32)
    return x, Conditions(labels, beside.get("cond"), beside.get("cond_field"))
