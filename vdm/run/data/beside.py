"""The vectors and fields that stand beside examples: what the model is to be conditioned on.

    vector    numbers [n, c] or [n], whole or real
    field     numbers at each position of an example, [n, *d, c] for examples [n, *d, any]

They are kept in the user's units; see `vdm.run.data.condition` for how they are put on a scale.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vdm.run.data import moments
from vdm.run.data.moments import Moments
from vdm.run.data.stores.store import Store
from vdm.run.errors import UserError

CHUNK_BYTES = 2**26  # that are checked together


class Called(NamedTuple):
    """What classes, vectors and fields are called in messages: as the user has written it."""

    label: str
    vector: str
    field: str


class Beside(NamedTuple):
    """A store of vectors or fields with the shape [c] or [*d, c] that a row is given."""

    store: Store
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """The type of the numbers, which holds those of the store: float32 or float64."""
        fits = np.result_type(self.store.dtype, np.float32) == np.float32
        return np.dtype(np.float32 if fits else np.float64)

    @property
    def num_bytes(self) -> int:
        """The bytes of a row."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        """Return some rows, [r, *shape]."""
        found = np.asarray(self.store[rows])
        return found.reshape(len(found), *self.shape).astype(self.dtype, copy=False)


def vector(store: Store, size: int, what: str) -> Beside:
    """Return vectors of `size` examples; raises UserError for another form or a number of rows."""
    _check_kind(store, what)
    form = store.shape[1:] or (1,)
    if store.shape[:1] != (size,) or len(form) != 1 or 0 in form:
        raise UserError(
            f"{what} must be a vector for each of the {size} examples, of shape [{size}, c] or "
            f"[{size}]: got shape {list(store.shape)}"
        )
    return Beside(store, form)


def field(store: Store, size: int, shape: tuple[int, ...], what: str) -> Beside:
    """Return fields of `size` examples of a shape [*d, channels].

    Raises UserError for another form, other positions or another number of rows.
    """
    _check_kind(store, what)
    positions = shape[:-1]
    if store.shape[:-1] != (size, *positions) or 0 in store.shape:
        expected = ", ".join(map(str, (size, *positions, "c")))
        raise UserError(
            f"{what} must be a field for each of the {size} examples {list(shape)}, of shape "
            f"[{expected}]: got shape {list(store.shape)}"
        )
    return Beside(store, store.shape[1:])


def measured(beside: Beside, rows: np.ndarray | None, what: str) -> Moments:
    """Return the moments of some rows, None for all, of each entry of the last axis, in float64.

    Every row is checked: raises UserError for a number that is not finite, or not in float32.
    """
    size = len(beside.store)
    chosen = np.ones(size, bool) if rows is None else np.isin(np.arange(size), rows)
    found: Moments | None = None
    for start, part in _parts(beside, size):
        check_finite(part, what, start)
        some = part[chosen[start : start + len(part)]]
        if len(some):
            new = moments.of(some)
            found = new if found is None else moments.join(found, new)
    assert found is not None, "a split has at least one example"
    return found


def check_finite(values: np.ndarray, what: str, first: int = 0) -> None:
    """Raise UserError for rows, numbered from `first`, that hold what float32 does not."""
    bad = ~(np.abs(values) <= np.finfo(np.float32).max).reshape(len(values), -1)
    if bad.any():
        row = int(np.argmax(bad.any(axis=1)))
        got = values.reshape(len(values), -1)[row, int(np.argmax(bad[row]))]
        raise UserError(
            f"{what} must be finite numbers (of float32): got {got} for example {first + row}"
        )


def _check_kind(store: Store, what: str) -> None:
    if store.dtype.kind not in "fiub":
        raise UserError(f"{what} must be numbers: got {store.dtype}")


def _parts(beside: Beside, size: int) -> Iterator[tuple[int, np.ndarray]]:
    step = max(1, CHUNK_BYTES // beside.num_bytes)
    for start in range(0, size, step):
        yield start, beside.take(slice(start, start + step))
