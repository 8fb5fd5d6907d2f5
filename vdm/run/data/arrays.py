"""The user's own arrays, of any shape, from files and stores.

    x.npy                         examples, the batch axis first; a tenth is held out as test
    x.npz                         x and, if there are classes, labels; or train and test with,
                                  if there are classes, train_labels and test_labels
    folder/train.npy, test.npy    one array per split, and train_labels.npy, test_labels.npy
    folder/train.npz, test.npz    x and, if there are classes, labels
    x.h5, x.zarr                  the names of an .npz, also in groups: train/x and test/x
    folder of Hugging Face        the columns of a Dataset; those of a DatasetDict are split/column

An array of another name is refused, since nothing would be done with it, unless a key names it.
Integers go with a discretised likelihood, real numbers with a Gaussian one. All but a .npz may be
larger than the memory.
"""

import math
import pathlib
from collections.abc import Mapping

import numpy as np

from vdm.run.data import moments
from vdm.run.data.dataset import Dataset, Examples, Largest, Stored, held_out
from vdm.run.data.moments import Moments
from vdm.run.data.stores import Store, names, stores
from vdm.run.data.stores.names import Pair
from vdm.run.errors import UserError

CHUNK_BYTES = 2**26  # of an array that are checked together


def load(path: str, split: str, key: str = "", label_key: str = "") -> Dataset:
    """Return a split of the arrays at a path; real numbers of any width become float32.

    `key` and `label_key` name the arrays of the examples and of their classes, where these are not
    the documented ones. Raises UserError for files that are missing, damaged or of another layout,
    for a key that is not there, for real numbers that are not finite and for negative integers.
    """
    file = pathlib.Path(path)
    found = stores(file)
    pairs = names.pairs(found.names, key, label_key, file)
    arrays = {pair.x: found.open(pair.x) for pair in pairs.values()}
    for name, x in arrays.items():
        _check(x, f"{path} ({name})")
    if len({(_is_real(x), x.shape[1:]) for x in arrays.values()}) > 1:
        both = " and ".join(f"{x.dtype} {list(x.shape[1:])}" for x in arrays.values())
        raise UserError(f"{path}: training and test examples differ in kind: {both}")
    classes = {
        part: check_labels(found.open(pair.labels), len(arrays[pair.x]), f"{path} ({pair.labels})")
        for part, pair in pairs.items()
        if pair.labels is not None
    }
    if classes and len(classes) < len(pairs):
        raise UserError(f"{path}: only one of train and test has labels: expected both or none")

    part = "x" if "x" in pairs else split
    x, labels = arrays[pairs[part].x], classes.get(part)
    rows = held_out(len(x), split) if part == "x" else np.arange(len(x))
    dtype, largest, moments_found = _numbers(x, rows, f"{path} ({pairs[part].x})")

    def take(index: np.ndarray) -> Examples:
        chosen = rows[index]
        some = None if labels is None else labels[chosen].astype(np.int32)
        return Examples(np.asarray(x[chosen]).astype(dtype, copy=False), some)

    return Dataset(
        "arrays",
        split,
        Stored(len(rows), x.shape[1:], dtype, take),
        version=f"arrays/{file.name}{':' if key else ''}{key}",
        num_classes=1 + max(int(some.max()) for some in classes.values()) if classes else None,
        largest=largest,
        moments=moments_found,
        taken=_taken(path, arrays, pairs, len(rows), split),
    )


def given(x: Store, labels: np.ndarray | None, what: str) -> Dataset:
    """Return all examples of an array, with none held out; `what` names it in messages.

    Raises UserError for real numbers that are not finite and for negative integers.
    """
    _check(x, what)
    dtype, largest, found = _numbers(x, np.arange(len(x)), what)

    def take(index: np.ndarray) -> Examples:
        part = None if labels is None else labels[index]
        return Examples(np.asarray(x[index]).astype(dtype, copy=False), part)

    stored = Stored(len(x), x.shape[1:], dtype, take)
    return Dataset("arrays", "all", stored, version=what, largest=largest, moments=found)


def _taken(
    path: str, arrays: Mapping[str, Store], pairs: Mapping[str, Pair], size: int, split: str
) -> str:
    """Return a line that says what every array of the files is taken for."""
    parts = []
    for pair in pairs.values():
        x = arrays[pair.x]
        with_labels = "" if pair.labels is None else f" with the classes {pair.labels}"
        shape = list(x.shape[1:])
        parts.append(f"{pair.x} is {len(x):,} examples {shape} of {x.dtype}{with_labels}")
    if "x" in pairs:
        held = "the held-out tenth" if split == "test" else "all but a held-out tenth"
        parts.append(f"the split {split} is {held}, {size:,} examples")
    return f"{path}: {'; '.join(parts)}"


def _check(x: Store, what: str) -> None:
    if x.dtype.kind not in "fiub":
        raise UserError(f"{what} must be integers or real numbers: got {x.dtype}")
    if len(x.shape) < 2 or 0 in x.shape:
        raise UserError(
            f"{what} must have the examples along the first axis and at least one value in each: "
            f"got shape {list(x.shape)}"
        )


def check_labels(labels: Store, size: int, what: str) -> np.ndarray:
    """Return the class of each of `size` examples; raises UserError for what is none."""
    is_one_each = labels.shape == (size,) and labels.dtype.kind in "iu"
    values = np.asarray(labels[:]) if is_one_each else None
    if values is None or values.min() < 0:
        lowest = "" if values is None else f" from {values.min()}"
        raise UserError(
            f"{what} must be a class 0, 1, ... for each of the {size} examples: got "
            f"{labels.dtype}{lowest} of shape {list(labels.shape)}"
        )
    return values


def _is_real(x: Store) -> bool:
    return x.dtype.kind == "f"


def _numbers(
    x: Store, rows: np.ndarray, what: str
) -> tuple[np.dtype, Largest | None, Moments | None]:
    """Return the type to give the values, the largest integer or the moments of some rows.

    In one pass over the values, all of which are checked.
    """
    num_dims = math.prod(x.shape[1:])
    step = max(1, CHUNK_BYTES // (x.dtype.itemsize * num_dims))
    chosen = np.zeros(len(x), bool)
    chosen[rows] = True
    largest, where = -1, 0
    found: Moments | None = None
    for start in range(0, len(x), step):
        part = np.asarray(x[start : start + step])
        bad = ~(np.abs(part) <= np.finfo(np.float32).max) if _is_real(x) else part < 0
        if bad.any():
            first = int(np.argmax(bad))
            expected = "finite numbers (of float32)" if _is_real(x) else "whole numbers from 0"
            raise UserError(
                f"{what} must be {expected}: got {part.flat[first]} at "
                f"{_place(start * num_dims + first, x.shape)}"
            )
        if _is_real(x):
            some = part[chosen[start : start + step]]
            new = moments.of(some) if len(some) else None
            found = moments.join(found, new) if found and new else found or new
        elif int(part.max()) > largest:
            largest, where = int(part.max()), start * num_dims + int(np.argmax(part))
    if _is_real(x):
        return np.dtype(np.float32), None, found
    kind = np.min_scalar_type(largest)
    return kind, Largest(largest, f"{what} at {_place(where, x.shape)}"), None


def _place(flat: int, shape: tuple[int, ...]) -> list[int]:
    return [int(i) for i in np.unravel_index(flat, shape)]
