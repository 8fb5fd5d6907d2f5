"""The user's own arrays, of any shape, from files and stores.

    x.npy                         examples, the batch axis first; a tenth is held out as test
    x.npz                         x and, if there are classes, labels; or train and test with,
                                  if there are classes, train_labels and test_labels
    folder/train.npy, test.npy    one array per split, and train_labels.npy, test_labels.npy
    folder/train.npz, test.npz    x and, if there are classes, labels
    x.h5, x.zarr                  the names of an .npz, also in groups: train/x and test/x
    folder of Hugging Face        the columns of a Dataset; those of a DatasetDict are split/column

As labels, so cond and cond_field: the vectors and fields that the model is conditioned on (see
`vdm.run.data.beside`).

An array of another name is refused, since nothing would be done with it, unless a key names it.
Integers go with a discretised likelihood, real numbers with a Gaussian one. All but a .npz may be
larger than the memory.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from vdm.condition import Conditions
from vdm.run.data import moments
from vdm.run.data.beside import Beside, Called, field, measured, vector
from vdm.run.data.dataset import Dataset, Examples, Largest, Stored, held_out, with_parts
from vdm.run.data.moments import Moments
from vdm.run.data.stores import Store, Stores, names, stores
from vdm.run.data.stores.names import Keys, Named
from vdm.run.errors import UserError

CHUNK_BYTES = 2**26  # of an array that are checked together
DOCUMENTED = Keys()


def load(path: str, split: str, keys: Keys = DOCUMENTED) -> Dataset:
    """Return a split of the arrays at a path; real numbers of any width become float32.

    The `keys` name the arrays, where these are not the documented ones. Raises UserError for files
    that are missing, damaged or of another layout, for a key that is not there, for real numbers
    that are not finite and for negative integers.
    """
    file = pathlib.Path(path)
    found = stores(file)
    forms = names.splits(found.names, keys, file)
    arrays = {form.x: found.open(form.x) for form in forms.values()}
    for name, x in arrays.items():
        _check(x, f"{path} ({name})")
    if len({(_is_real(x), x.shape[1:]) for x in arrays.values()}) > 1:
        both = " and ".join(f"{x.dtype} {list(x.shape[1:])}" for x in arrays.values())
        raise UserError(f"{path}: training and test examples differ in kind: {both}")
    classes = {
        part: check_labels(found.open(form.labels), len(arrays[form.x]), f"{path} ({form.labels})")
        for part, form in forms.items()
        if form.labels is not None
    }
    if classes and len(classes) < len(forms):
        raise UserError(f"{path}: only one of train and test has labels: expected both or none")
    beside = {
        part: _beside(found, form, arrays[form.x].shape, path) for part, form in forms.items()
    }
    for kind in names.OWN[1:]:
        shapes = [b[kind].shape if kind in b else None for b in beside.values()]
        if len(set(shapes)) > 1:
            said = " and ".join("none" if s is None else str(list(s)) for s in shapes)
            raise UserError(f"{path}: training and test {kind} differ in shape: {said}")

    part = "x" if "x" in forms else split
    x, labels, others = arrays[forms[part].x], classes.get(part), beside[part]
    rows = held_out(len(x), split) if part == "x" else np.arange(len(x))
    dtype, largest, moments_found = _numbers(x, rows, f"{path} ({forms[part].x})")
    scales = {
        kind: measured(one, rows, f"{path} ({getattr(forms[part], kind)})")
        for kind, one in others.items()
    }

    def take(index: np.ndarray) -> Examples:
        chosen = rows[index]
        return Examples(
            np.asarray(x[chosen]).astype(dtype, copy=False),
            None if labels is None else labels[chosen].astype(np.int32),
            vector=others["cond"].take(chosen) if "cond" in others else None,
            field=others["cond_field"].take(chosen) if "cond_field" in others else None,
        )

    num_bytes = sum(one.num_bytes for one in others.values())
    return Dataset(
        "arrays",
        split,
        Stored(len(rows), x.shape[1:], dtype, take, num_bytes),
        version=f"arrays/{file.name}{':' if keys.key else ''}{keys.key}",
        num_classes=1 + max(int(some.max()) for some in classes.values()) if classes else None,
        largest=largest,
        moments=moments_found,
        taken=_taken(
            path, arrays, beside, forms, len(rows), split, names.unused(found.names, keys)
        ),
        vector=scales.get("cond"),
        field=scales.get("cond_field"),
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


def conditioned(data: Dataset, parts: Conditions, called: Called) -> Dataset:
    """Return a data set with these vectors and fields of its examples, `called` so in messages.

    Raises UserError for another number of them, for fields of another spatial shape, and for
    numbers that are not finite.
    """
    size, scales = len(data), {}
    if parts.vector is not None:
        own = vector(np.asarray(parts.vector), size, called.vector)
        scales["vector"] = measured(own, None, called.vector)
        parts = parts._replace(vector=own.take(slice(None)))
    if parts.field is not None:
        own = field(np.asarray(parts.field), size, data.shape, called.field)
        scales["field"] = measured(own, None, called.field)
        parts = parts._replace(field=own.take(slice(None)))
    there = with_parts(data, Conditions(None, parts.vector, parts.field)) if scales else data
    return dataclasses.replace(there, vector=scales.get("vector"), field=scales.get("field"))


def _beside(found: Stores, form: Named, shape: tuple[int, ...], path: str) -> dict[str, Beside]:
    """Return the vectors and fields of a split by the names that they have in an .npz."""
    made = {}
    if form.cond is not None:
        made["cond"] = vector(found.open(form.cond), shape[0], f"{path} ({form.cond})")
    if form.cond_field is not None:
        what = f"{path} ({form.cond_field})"
        made["cond_field"] = field(found.open(form.cond_field), shape[0], shape[1:], what)
    return made


def _taken(
    path: str,
    arrays: Mapping[str, Store],
    beside: Mapping[str, Mapping[str, Beside]],
    forms: Mapping[str, Named],
    size: int,
    split: str,
    unused: Sequence[str],
) -> str:
    """Return a line that says what every array of the files is taken for."""
    parts = []
    for part, form in forms.items():
        x, others = arrays[form.x], beside[part]
        said = [] if form.labels is None else [f"the classes {form.labels}"]
        if "cond" in others:
            said.append(f"the vectors {form.cond} {list(others['cond'].shape)}")
        if "cond_field" in others:
            said.append(f"the fields {form.cond_field} {list(others['cond_field'].shape)}")
        with_others = f" with {' and '.join(said)}" if said else ""
        shape = list(x.shape[1:])
        parts.append(f"{form.x} is {len(x):,} examples {shape} of {x.dtype}{with_others}")
    if "x" in forms:
        held = "the held-out tenth" if split == "test" else "all but a held-out tenth"
        parts.append(f"the split {split} is {held}, {size:,} examples")
    return f"{path}: {'; '.join((*parts, *unused))}"


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
