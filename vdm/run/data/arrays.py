"""The user's own arrays, of any shape, from .npy and .npz files.

    x.npy                         examples, the batch axis first; a tenth is held out as test
    x.npz                         x and, if there are classes, labels; or train and test with,
                                  if there are classes, train_labels and test_labels
    folder/train.npy, test.npy    one array per split, and train_labels.npy, test_labels.npy
    folder/train.npz, test.npz    x and, if there are classes, labels

An array of another name is refused, since nothing would be done with it.
Integers go with a discretised likelihood, real numbers with a Gaussian one. A .npy file may
be larger than the memory; a .npz is always read whole.
"""

import math
import pathlib
import zipfile
from collections.abc import Collection, Mapping

import numpy as np

from vdm.choices import unknown
from vdm.run.data import moments
from vdm.run.data.dataset import Dataset, Examples, Largest, Stored, held_out
from vdm.run.data.moments import Moments
from vdm.run.errors import UserError
from vdm.run.system.files import check_is_file

CHUNK_BYTES = 2**26  # of an array that are checked together
SPLIT_NAMES = ("train", "test", "train_labels", "test_labels")


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
        check_labels(arrays.get(labels_name), len(arrays[name]), f"{path} ({labels_name})")
    if len({(_is_real(arrays[name]), arrays[name].shape[1:]) for name in pairs}) > 1:
        both = " and ".join(f"{arrays[n].dtype} {list(arrays[n].shape[1:])}" for n in pairs)
        raise UserError(f"{path}: training and test examples differ in kind: {both}")
    classes = [arrays[name] for name in pairs.values() if name in arrays]
    if classes and len(classes) < len(pairs):
        raise UserError(f"{path}: only one of train and test has labels: expected both or none")

    name = "x" if "x" in arrays else split
    x, labels = arrays[name], arrays.get(pairs[name])
    rows = held_out(len(x), split) if name == "x" else np.arange(len(x))
    dtype, largest, found = _numbers(x, rows, f"{path} ({name})")

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
        moments=found,
        taken=_taken(path, arrays, pairs, len(rows), split),
    )


def given(x: np.ndarray, labels: np.ndarray | None, what: str) -> Dataset:
    """Return all examples of an array, with none held out; `what` names it in messages.

    Raises UserError for real numbers that are not finite and for negative integers.
    """
    _check_shape(x, what)
    dtype, largest, found = _numbers(x, np.arange(len(x)), what)

    def take(index: np.ndarray) -> Examples:
        part = None if labels is None else labels[index]
        return Examples(np.asarray(x[index]).astype(dtype, copy=False), part)

    stored = Stored(len(x), x.shape[1:], dtype, take)
    return Dataset("arrays", "all", stored, version=what, largest=largest, moments=found)


def _taken(
    path: str,
    arrays: Mapping[str, np.ndarray],
    pairs: Mapping[str, str],
    size: int,
    split: str,
) -> str:
    """Return a line that says what every array of the files is taken for."""
    parts = []
    for name, labels_name in pairs.items():
        x = arrays[name]
        with_labels = f" with the classes {labels_name}" if labels_name in arrays else ""
        shape = list(x.shape[1:])
        parts.append(f"{name} is {len(x):,} examples {shape} of {x.dtype}{with_labels}")
    if "x" in pairs:
        held = "the held-out tenth" if split == "test" else "all but a held-out tenth"
        parts.append(f"the split {split} is {held}, {size:,} examples")
    return f"{path}: {'; '.join(parts)}"


def _open(path: pathlib.Path) -> Mapping[str, np.ndarray]:
    if not path.exists():
        raise UserError(f"no file or folder {str(path)!r} (data.path), relative to {path.cwd()}")
    if not path.is_dir():
        arrays = read_file(path)
        check_names(arrays, ("x", "labels") if "x" in arrays else ("x", *SPLIT_NAMES), path)
        return arrays
    files = sorted(file for file in path.iterdir() if _is_array(file))
    check_names([file.stem for file in files], SPLIT_NAMES, path)
    joined: dict[str, np.ndarray] = {}
    for file in files:
        found = read_file(file)
        if file.suffix == ".npz":
            if file.stem not in ("train", "test"):
                raise UserError(f"{path} is read as {file.stem}.npy: got {file.name}")
            check_names(found, ("x", "labels"), file)
        for key, value in found.items():
            name = file.stem if key == "x" else f"{file.stem}_labels"
            if name in joined:
                raise UserError(f"{path} has {name} twice: in {file.name} and in another file")
            joined[name] = value
    return joined


def _is_array(file: pathlib.Path) -> bool:
    return file.suffix in (".npy", ".npz") and not file.name.startswith(".")


def check_names(names: Collection[str], known: tuple[str, ...], where: pathlib.Path) -> None:
    """Raise UserError for an array that nothing would be done with."""
    for name in names:
        if name not in known:
            raise UserError(
                f"{where} has an array that would not be used: {unknown('name', name, known)}"
            )


def read_file(file: pathlib.Path) -> Mapping[str, np.ndarray]:
    """Return the arrays of a file by name, that of a .npy as x; raises UserError for a bad file."""
    if file.suffix not in (".npy", ".npz"):
        raise UserError(f"arrays are read from .npy and .npz files or a folder: got {file.name!r}")
    check_is_file(file)
    try:
        if file.suffix == ".npy":
            x = np.load(file, mmap_mode="r", allow_pickle=False)
            if not isinstance(x, np.ndarray):
                x.close()
                raise ValueError("it is an archive of several arrays")
            if isinstance(x, np.memmap) and (more := file.stat().st_size - x.offset - x.nbytes) > 0:
                raise ValueError(f"{more} bytes follow the array's end")
            return {"x": x}
        with zipfile.ZipFile(file) as archive:
            members = archive.namelist()
        if twice := [name for name in members if members.count(name) > 1]:
            raise ValueError(f"its member {twice[0]!r} is there twice")
        with np.load(file, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files}
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


def check_labels(labels: np.ndarray | None, size: int, what: str) -> None:
    """Raise UserError unless there are no labels, or a class for each of `size` examples."""
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


def _numbers(
    x: np.ndarray, rows: np.ndarray, what: str
) -> tuple[np.dtype, Largest | None, Moments | None]:
    """Return the type to give the values, the largest integer or the moments of some rows.

    In one pass over the values, all of which are checked.
    """
    if x.dtype.kind not in "fiub":
        raise UserError(f"{what} must be integers or real numbers: got {x.dtype}")
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
