"""A data set that is the user's own function: `package.module:function` in place of a name.

It is called with the name of a split, "train" or "test", and with data.path as `path` if it takes
that. It returns the examples, the batch axis first, or them and the class of each.
"""

import dataclasses
import inspect
from typing import Any

import numpy as np

from vdm.run.config import own
from vdm.run.config.words import SPLITS
from vdm.run.data import arrays
from vdm.run.data.dataset import Dataset
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
        found[part] = _pair(given, f"{name}({part!r})")
    kinds = {
        part: (x.dtype.kind, x.shape[1:], labels is None) for part, (x, labels) in found.items()
    }
    if len(set(kinds.values())) > 1:
        raise UserError(f"{name}: training and test examples differ in kind: {kinds}")
    x, labels = found[split]
    made = arrays.given(x, labels, f"{name}({split!r})")
    every = [part for _, part in found.values() if part is not None]
    classes = 1 + max(int(part.max()) for part in every) if every else None
    return dataclasses.replace(
        made, name="own", split=split, version=f"own/{name}", num_classes=classes
    )


def _pair(given: Any, what: str) -> tuple[np.ndarray, np.ndarray | None]:
    x, labels = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    try:
        x, labels = np.asarray(x), None if labels is None else np.asarray(labels)
    except ValueError as error:
        raise UserError(f"{what} returned no array: {error}") from error
    if x.dtype.kind not in "biuf":
        raise UserError(
            f"{what} must return an array of numbers, or a pair of it and classes: got "
            f"{type(given).__name__} of {x.dtype}"
        )
    if labels is None:
        return x, None
    arrays.check_labels(labels, len(x) if x.ndim else 0, f"{what} (labels)")
    return x, labels.astype(np.int32)
