"""The user's own arrays, of any shape, from .npy and .npz files.

    x.npy                         examples, the batch axis first; a tenth is held out as test
    x.npz                         x and, if there are classes, labels; or train and test with,
                                  if there are classes, train_labels and test_labels
    folder/train.npy, test.npy    one array per split, and train_labels.npy, test_labels.npy
    folder/train.npz, test.npz    x and, if there are classes, labels

Integers go with a discretised likelihood, real numbers with a Gaussian one. A .npy file may
be larger than the memory; a .npz is always read whole.
"""

import math
import pathlib
from collections.abc import Mapping

import numpy as np

from vdm.run.data.dataset import Dataset, Examples, Largest, Stored, held_out
from vdm.run.errors import UserError

CHUNK_BYTES = 2**26  # of an array that are checked together


def load(path: str, split: str) -> Dataset:
    """Return a split of the arrays at a path; real numbers of any width become float32.

    Raises UserError for files that are missing, damaged or of another layout, for real numbers that
    are not finite and for negative integers.
    """
    arrays = _open(pathlib.Path(path))
    # Each array of examples with the array of its classes.
    pairs = {"x": "labels"}
    if "x" not in arrays:
        pairs = {"train": "train_labels", "test": "test_labels"}
        if missing := [name for name in pairs if name not in arrays]:
            have = ", ".join(arrays) or "none"
            raise UserError(
                f"{path} has neither an array 'x' nor {missing[0]!r}; its arrays with a known "
                f"name: {have}. Expected a file x.npy, an .npz with 'x', or with 'train' and "
                "'test', or a folder with train.npy and test.npy"
            )
    for name, labels_name in pairs.items():
        _check_shape(arrays[name], f"{path} ({name})")
        _check_labels(arrays.get(labels_name), len(arrays[name]), f"{path} ({labels_name})")
    if len({(_is_real(arrays[name]), arrays[name].shape[1:]) for name in pairs}) > 1:
        both = " and ".join(f"{arrays[n].dtype} {list(arrays[n].shape[1:])}" for n in pairs)
        raise UserError(f"{path}: training and test examples differ in kind: {both}")
    classes = [arrays[name] for name in pairs.values() if name in arrays]
    if classes and len(classes) < len(pairs):
        raise UserError(f"{path}: only one of train and test has labels: expected both or none")

    name = "x" if "x" in arrays else split
    x, labels = arrays[name], arrays.get(pairs[name])
    rows = held_out(len(x), split) if name == "x" else np.arange(len(x))
    dtype, largest = _numbers(x, f"{path} ({name})")

    def take(index: np.ndarray) -> Examples:
        chosen = rows[index]
        part = None if labels is None else labels[chosen].astype(np.int32)
        return Examples(np.asarray(x[chosen]).astype(dtype, copy=False), part)

    return Dataset(
        "arrays",
        split,
        Stored(len(rows), x.shape[1:], dtype, take),
        version=f"arrays/{pathlib.Path(path).name}",
        num_classes=1 + max(int(part.max()) for part in classes) if classes else None,
        largest=largest,
    )


def _open(path: pathlib.Path) -> Mapping[str, np.ndarray]:
    if not path.exists():
        raise UserError(f"no file or folder {str(path)!r} (data.path), relative to {path.cwd()}")
    if not path.is_dir():
        return read_file(path)
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        for file in sorted(path.glob(f"{split}*.np[yz]")):
            whole = read_file(file)
            if file.suffix == ".npy":
                arrays[file.stem] = whole["x"]
            elif file.stem == split:
                named = {"x": split, "labels": f"{split}_labels"}
                arrays |= {named[key]: value for key, value in whole.items() if key in named}
    return arrays


def read_file(file: pathlib.Path) -> Mapping[str, np.ndarray]:
    """Return the arrays of a file by name, that of a .npy as x; raises UserError for a bad file."""
    if file.suffix not in (".npy", ".npz"):
        raise UserError(f"arrays are read from .npy and .npz files or a folder: got {file.name!r}")
    try:
        if file.suffix == ".npy":
            x = np.load(file, mmap_mode="r", allow_pickle=False)
            if not isinstance(x, np.ndarray):
                raise ValueError("it is an archive of several arrays")
            return {"x": x}
        with np.load(file, allow_pickle=False) as archive:
            found = {key: archive[key] for key in archive.files}
            if others := [key for key, x in found.items() if not isinstance(x, np.ndarray)]:
                raise ValueError(f"its member {others[0]!r} is not an array")
            return found
    # A damaged file, or one of another kind, raises errors of many types.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read {file} as {file.suffix}: {reason}") from error


def _check_shape(x: np.ndarray, what: str) -> None:
    if x.ndim < 2 or 0 in x.shape:
        raise UserError(
            f"{what} must have the examples along the first axis and at least one value in each: "
            f"got shape {list(x.shape)}"
        )


def _check_labels(labels: np.ndarray | None, size: int, what: str) -> None:
    if labels is None:
        return
    if labels.shape != (size,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        lowest = f" from {labels.min()}" if labels.dtype.kind == "i" and labels.size else ""
        raise UserError(
            f"{what} must be a class 0, 1, ... for each of the {size} examples: got "
            f"{labels.dtype}{lowest} of shape {list(labels.shape)}"
        )


def _is_real(x: np.ndarray) -> bool:
    return x.dtype.kind == "f"


def _numbers(x: np.ndarray, what: str) -> tuple[np.dtype, Largest | None]:
    """Return the type to give the values, and the largest integer, in one pass."""
    if x.dtype.kind not in "fiub":
        raise UserError(f"{what} must be integers or real numbers: got {x.dtype}")
    num_dims = math.prod(x.shape[1:])
    rows = max(1, CHUNK_BYTES // (x.dtype.itemsize * num_dims))
    largest, where = -1, 0
    for start in range(0, len(x), rows):
        part = np.asarray(x[start : start + rows])
        bad = ~(np.abs(part) <= np.finfo(np.float32).max) if _is_real(x) else part < 0
        if bad.any():
            first = int(np.argmax(bad))
            expected = "finite numbers (of float32)" if _is_real(x) else "whole numbers from 0"
            raise UserError(
                f"{what} must be {expected}: got {part.flat[first]} at "
                f"{_place(start * num_dims + first, x.shape)}"
            )
        if not _is_real(x) and int(part.max()) > largest:
            largest, where = int(part.max()), start * num_dims + int(np.argmax(part))
    if _is_real(x):
        return np.dtype(np.float32), None
    return np.min_scalar_type(largest), Largest(largest, f"{what} at {_place(where, x.shape)}")


def _place(flat: int, shape: tuple[int, ...]) -> list[int]:
    return [int(i) for i in np.unravel_index(flat, shape)]
