"""The vectors of a folder's images, from the file conditions.csv in it.

It has a header with the column `file` and one column for each number of the vector, and a row for
each image: its path in the folder, with slashes, and its numbers in the user's units. It is read
only where the network takes vectors. The names of the columns are kept with the run, and later
files are read by name.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vdm.condition import Conditions
from vdm.run.data import beside, table
from vdm.run.data.dataset import Dataset, with_parts
from vdm.run.errors import UserError

SIDE_FILE = "conditions.csv"


class Vectors(NamedTuple):
    """Vectors [n, c], and what each of the c numbers is called."""

    values: np.ndarray
    names: tuple[str, ...]


def joined(
    data: Dataset, path: str | pathlib.Path, network: object, names: Sequence[str] = ()
) -> Dataset:
    """Return images of a folder with their vectors, where the network takes them.

    Other data are returned as they are. Raises UserError as `read`.
    """
    vectors = read(data, path, network, names)
    if vectors is None:
        return data
    what = str(pathlib.Path(path) / SIDE_FILE)
    measured = beside.measured(beside.vector(vectors.values, len(data), what), None, what)
    joint = with_parts(data, Conditions(vector=vectors.values))
    return dataclasses.replace(joint, vector=measured, vector_names=vectors.names)


def unused(data: Dataset, path: str | pathlib.Path, network: object) -> list[str]:
    """Return a line where there is a file of vectors and the network takes none."""
    file = pathlib.Path(path) / SIDE_FILE
    if data.files is None or getattr(network, "cond_dim", None) or not file.exists():
        return []
    return [f"{file} is not used: the network takes its numbers with model.network.cond_dim"]


def read(
    data: Dataset, path: str | pathlib.Path, network: object, names: Sequence[str] = ()
) -> Vectors | None:
    """Return the vectors of images, None for other data and for a network without vectors.

    With `names`, those of a run, columns are taken by name. Raises UserError for a file that is not
    there or cannot be read, that has no row for an image or two of them, a row for something else,
    another number of columns than the network takes, or columns of other names.
    """
    size: int | None = getattr(network, "cond_dim", None)
    if not size or data.files is None or data.vector is not None:
        return None
    file = pathlib.Path(path) / SIDE_FILE
    if not file.exists():
        raise UserError(
            f"model.network.cond_dim is {size}, but {path} has no {SIDE_FILE}: expected one with "
            "the columns file and a number each, and a row for each image"
        )
    header, rows = table.read(file)
    if "file" not in header:
        raise UserError(f"{file} has no column 'file': got {', '.join(header)}")
    if "labels" in header:
        raise UserError(f"{file} has a column 'labels': classes of images are their subfolders")
    at = header.index("file")
    columns = table.columns(header, "file", names, file)
    if len(columns) != size:
        raise UserError(
            f"model.network.cond_dim is {size}, but {file} has {len(columns)} columns of numbers"
        )
    values = table.numbers(rows, columns, header, file)
    found: dict[str, np.ndarray] = {}
    for row, vector in zip(rows, values, strict=True):
        name = row[at]
        if name in found:
            raise UserError(f"{file} has two rows for {name!r}")
        found[name] = vector
    own = set(data.files)
    for name in found:
        if name not in own and not (file.parent / name).is_file():
            raise UserError(f"{file} has a row for {name!r}, which is no image of the folder")
    if lacking := [name for name in data.files if name not in found]:
        raise UserError(f"{file} has no row for {lacking[0]!r}")
    values = np.stack([found[name] for name in data.files])
    return Vectors(values, tuple(header[i] for i in columns))
