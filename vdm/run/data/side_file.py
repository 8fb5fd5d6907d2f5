"""The vectors of a folder's images, from the file conditions.csv in it.

It has a header with the column `file` and one column for each number of the vector, and a row for
each image: its path in the folder, with slashes, and its numbers in the user's units. It is read
only where the network takes vectors.
"""

import dataclasses
import pathlib

import numpy as np

from vdm.condition import Conditions
from vdm.run.data import beside, table
from vdm.run.data.dataset import Dataset, with_parts
from vdm.run.errors import UserError

SIDE_FILE = "conditions.csv"


def joined(data: Dataset, path: str | pathlib.Path, network: object) -> Dataset:
    """Return images of a folder with their vectors, where the network takes them.

    Other data are returned as they are. Raises UserError as `read`.
    """
    vectors = read(data, path, network)
    if vectors is None:
        return data
    what = str(pathlib.Path(path) / SIDE_FILE)
    measured = beside.measured(beside.vector(vectors, len(data), what), None, what)
    return dataclasses.replace(with_parts(data, Conditions(vector=vectors)), vector=measured)


def read(data: Dataset, path: str | pathlib.Path, network: object) -> np.ndarray | None:
    """Return the vectors of images [n, c], None for other data and for a network without vectors.

    Raises UserError for a file that is not there or cannot be read, that has no row for an image or
    two of them, a row for something else, or another number of columns than the network takes.
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
    columns = [i for i in range(len(header)) if i != at]
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
    return np.stack([found[name] for name in data.files])
