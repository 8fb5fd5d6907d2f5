"""Sets of points in an .npz: examples of different numbers of points, padded or one after another.

    x [n, n_max, c] and mask [n, n_max]     padded: the mask is True where there is a point
    x [points, c] and lengths [n]           ragged: the points of the first set, then of the second

Beside them may stand labels [n], cond [n, k], and cond_field, numbers of each point in the form of
x. Without splits a tenth is held out as test; a file with train and test in place of x has
train_mask or train_lengths, train_labels and so on. Padding is not looked at, and is cut to what
the largest set needs: how much there was changes no number.
"""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vdm import sets
from vdm.run.data import arrays, moments
from vdm.run.data.beside import check_finite, measured, vector
from vdm.run.data.dataset import Dataset, Examples, Largest, held_out
from vdm.run.data.stores import numpy_files
from vdm.run.data.stores.names import GROUPS, OWN, check_names
from vdm.run.errors import UserError, as_user_error

FORMS = ("mask", "lengths")
ARRAYS = (*FORMS, *OWN)
Arrays = Mapping[str, np.ndarray]


class Sets(NamedTuple):
    """The sets of a split, their padding cut, and what stands beside each; see the module."""

    x: np.ndarray
    mask: np.ndarray
    labels: np.ndarray | None
    vector: np.ndarray | None
    field: np.ndarray | None

    def padded(self, size: int) -> "Sets":
        """Return the sets with as many rows as `size` points need."""
        more = size - self.x.shape[1]
        wide = ((0, 0), (0, more), (0, 0))
        field = None if self.field is None else np.pad(self.field, wide)
        mask = np.pad(self.mask, wide[:2])
        return self._replace(x=np.pad(self.x, wide), mask=mask, field=field)

    def take(self, rows: np.ndarray) -> "Sets":
        """Return some of the sets."""
        return Sets(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]


def load(path: str, split: str) -> Dataset:
    """Return a split of the sets in a file; raises UserError for a file that is none of sets."""
    file = pathlib.Path(path)
    if file.suffix.lower() != ".npz" or not file.is_file():
        raise UserError(f"sets are read from an .npz file: got {path!r}")
    found = numpy_files.read_file(file)
    parts = {"x": found} if "x" in found else {part: _of(found, part) for part in GROUPS}
    known = ("x", *ARRAYS) if "x" in found else tuple(found)
    check_names(found, known, file)
    return of_splits(parts, split, version=f"sets/{file.name}", what=path)


def of_splits(parts: Mapping[str, Arrays], split: str, *, version: str, what: str) -> Dataset:
    """Return a split of the sets that "train" and "test" hold, or "x", of which a tenth is test.

    `what` names them in messages. Raises UserError for arrays that do not make sets.
    """
    made = {part: read(one, f"{what} ({part})") for part, one in parts.items()}
    kinds = {_kind(one) for one in made.values()}
    if len(kinds) > 1:
        raise UserError(f"{what}: training and test sets differ in kind: {kinds}")
    # Of both splits: a model has one law of the number, and one shape.
    size = max(one.x.shape[1] for one in made.values())
    every = [one.labels.max() for one in made.values() if one.labels is not None]
    part = "x" if "x" in made else split
    whole = made[part].padded(size)
    rows = held_out(len(whole.x), split) if part == "x" else np.arange(len(whole.x))
    how = "ragged" if "lengths" in parts[part] else "padded"
    said = f"{what}: {part} is {len(whole.x):,} {how} sets of up to {size} points of "
    said += f"{whole.x.shape[2]} numbers ({whole.x.dtype})"
    if part == "x":
        held = "the held-out tenth" if split == "test" else "all but a held-out tenth"
        said += f"; the split {split} is {held}, {len(rows):,} examples"
    return dataset(
        whole.take(rows),
        split,
        version=version,
        what=f"{what} ({part})",
        num_classes=1 + int(max(every)) if every else None,
        taken=said,
    )


def read(found: Arrays, what: str) -> Sets:
    """Return sets from arrays x, mask or lengths, labels, cond and cond_field.

    Raises UserError for arrays that do not make sets, and for numbers that are not finite.
    """
    x, field = found["x"], found.get("cond_field")
    forms = [form for form in FORMS if form in found]
    if len(forms) != 1:
        raise UserError(
            f"{what}: sets need a mask or lengths, one of the two, beside the points: got "
            f"{' and '.join(forms) or 'neither'}"
        )
    if x.dtype.kind not in "fiu":
        raise UserError(f"{what} must be integers or real numbers: got {x.dtype}")
    if forms == ["mask"]:
        mask = found["mask"]
        if mask.dtype.kind in "iu" and np.isin(mask, (0, 1)).all():
            mask = mask.astype(bool)
    else:
        x, field, mask = _padded(x, field, found["lengths"], what)
    with as_user_error(f"{what}, mask"):
        sets.check_mask(mask, x.shape)
    if field is not None and field.shape[:2] != x.shape[:2]:
        raise UserError(
            f"{what}: cond_field must be numbers of every point, in the form of x: got shape "
            f"{list(found['cond_field'].shape)} beside x of shape {list(found['x'].shape)}"
        )
    kept, there = sets.trimmed(x, mask)
    field = None if field is None else _field(sets.trimmed(field, mask)[0], what)
    labels, own = found.get("labels"), found.get("cond")
    if labels is not None:
        labels = arrays.check_labels(labels, len(x), f"{what}, labels").astype(np.int32)
    if own is not None:
        own = vector(own, len(x), f"{what}, cond").take(slice(None))
    return Sets(_checked(kept, there, what), there, labels, own, field)


def dataset(
    found: Sets,
    split: str,
    *,
    version: str,
    what: str,
    num_classes: int | None = None,
    taken: str = "",
) -> Dataset:
    """Return sets as a data set, with the moments of their points."""
    real = found.x.dtype.kind == "f"
    points = found.x[found.mask]
    largest = None
    if not real:
        place = np.unravel_index(int(np.argmax(found.x)), found.x.shape)
        largest = Largest(int(found.x.max()), f"{what} at {[int(i) for i in place]}")
    own = None if found.vector is None else vector(found.vector, len(found.x), what)
    return Dataset(
        "sets",
        split,
        Examples(found.x, found.labels, None, found.vector, found.field, found.mask),
        version=version,
        num_classes=num_classes,
        largest=largest,
        moments=moments.of(points) if real else None,
        taken=taken,
        vector=None if own is None else measured(own, None, f"{what}, cond"),
        field=None if found.field is None else moments.of(found.field[found.mask]),
        points=found.mask.sum(axis=1),
    )


def _of(found: Arrays, part: str) -> dict[str, np.ndarray]:
    """Return the arrays of a split by the names that they have without it."""
    if part not in found:
        raise UserError(
            f"a file of sets has x, or train and test: got {', '.join(found) or 'no array'}"
        )
    known = {part: "x", **{f"{part}_{name}": name for name in ARRAYS}}
    own = [name for name in found if name.split("_")[0] == part]
    check_names(own, tuple(known), pathlib.Path(part))
    return {known[name]: found[name] for name in own}


def _padded(
    x: np.ndarray, field: np.ndarray | None, lengths: np.ndarray, what: str
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return ragged points, and what is known of each, padded, with their mask."""
    if x.ndim != 2 or lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise UserError(
            f"{what}: with lengths [n], whole numbers, x must be points [points, c]: got x of "
            f"shape {list(x.shape)} and lengths of shape {list(lengths.shape)} ({lengths.dtype})"
        )
    if lengths.size and lengths.min() < 1:
        raise UserError(
            f"{what}: every set must have a point: got the length {lengths.min()} for example "
            f"{int(np.argmin(lengths))}"
        )
    if not lengths.size or lengths.sum() != len(x):
        raise UserError(
            f"{what}: the lengths must add up to the number of points: they make {lengths.sum()}, "
            f"and x has {len(x)}"
        )
    if field is not None and len(field) != len(x):
        raise UserError(f"{what}: cond_field has {len(field)} rows, and x has {len(x)}")
    mask = sets.of_lengths(lengths, int(lengths.max()))

    def spread(values: np.ndarray) -> np.ndarray:
        wide = np.zeros((*mask.shape, *values.shape[1:]), values.dtype)
        wide[mask] = values
        return wide

    return spread(x), None if field is None else spread(field), mask


def _checked(x: np.ndarray, mask: np.ndarray, what: str) -> np.ndarray:
    """Return points in the type that a model takes; raises UserError for what is no number."""
    if x.dtype.kind == "f":
        check_finite(x, what)
        return x.astype(np.float32)
    if x.min() < 0:
        raise UserError(f"{what} must be whole numbers from 0: got {x.min()}")
    return x.astype(np.min_scalar_type(int(x.max())))


def _field(values: np.ndarray, what: str) -> np.ndarray:
    check_finite(values, f"{what}, cond_field")
    return values.astype(np.float32)


def _kind(found: Sets) -> tuple[object, ...]:
    """Return what training and test sets must have in common."""
    sizes = (None if part is None else part.shape[-1] for part in (found.vector, found.field))
    return found.x.dtype.kind, found.x.shape[2], found.labels is None, *sizes
