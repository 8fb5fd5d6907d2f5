"""A store: an array of examples in a file, of which any rows can be read."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from vdm.run.errors import UserError

TEXT = np.dtypes.StringDType()  # of a store that holds texts


@runtime_checkable
class Store(Protocol):
    """Values [n, ...] of which any rows can be read, from any thread and after a fork.

    A NumPy array is a store, one that is mapped into memory too.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of rows, and the shape of each."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The type of the values."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray | slice, /) -> np.ndarray:
        """Return a range of rows, or those of an index from 0, in its order."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """A store by `read`, which is given a range of rows or an increasing index, none twice."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[np.ndarray | slice], np.ndarray]

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def __getitem__(self, rows: np.ndarray | slice, /) -> np.ndarray:
        if isinstance(rows, slice):
            return self.read(slice(*rows.indices(len(self))))
        if not len(rows):
            return np.empty((0, *self.shape[1:]), self.dtype)
        index, back = np.unique(rows, return_inverse=True)
        first, last = int(index[0]), int(index[-1])
        together = last - first + 1 == len(index)
        return self.read(slice(first, last + 1) if together else index)[back]


class Stores(NamedTuple):
    """The stores of a file or a folder by name, each opened when it is asked for."""

    names: tuple[str, ...]
    open: Callable[[str], Store]


@contextlib.contextmanager
def reading(path: pathlib.Path, kind: str) -> Iterator[None]:
    """Turn any error of a library that reads a file into a UserError: the file is the cause."""
    try:
        yield
    except UserError:
        raise
    # A damaged file, or one of another kind, raises errors of many types.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read {path} as {kind}: {reason}") from error


def missing(package: str, path: pathlib.Path) -> UserError:
    """Return the error of a file whose package is not installed."""
    return UserError(
        f"{path} is read with {package}, which needs the extra: pip install 'vdm-jax[stores]'"
    )
