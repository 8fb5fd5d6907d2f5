"""The arrays of a folder of zarr, of version 2 or 3.

A chunk that is not there reads as the array's fill value, as the format says: that a chunk was lost
cannot be seen.
"""

import pathlib

import numpy as np

from vdm.run.data.stores.store import Rows, Store, Stores, missing, reading
from vdm.run.errors import UserError

METADATA = ("zarr.json", ".zgroup", ".zarray")


def is_zarr(path: pathlib.Path) -> bool:
    """Return whether a folder is one of zarr, or is called so."""
    return path.suffix == ".zarr" or any((path / name).exists() for name in METADATA)


def stores(path: pathlib.Path) -> Stores:
    """Return the arrays of a folder by their paths in it; a folder that is one array has x.

    Raises UserError for a folder without metadata and for damaged ones.
    """
    try:
        import zarr  # late: it takes a second, and is of an extra
    except ImportError as error:
        raise missing("zarr", path) from error
    if not any((path / name).is_file() for name in METADATA):
        raise UserError(f"{path} has no metadata of zarr: expected one of {', '.join(METADATA)}")
    with reading(path, "zarr"):
        root = zarr.open(path, mode="r")
        if isinstance(root, zarr.Array):
            arrays = {"x": root}
        else:
            members = root.members(max_depth=None)
            arrays = {name: item for name, item in members if isinstance(item, zarr.Array)}

    def open_one(name: str) -> Store:
        array = arrays[name]

        def read(rows: np.ndarray | slice) -> np.ndarray:
            with reading(path, "zarr"):
                # By an index every chunk is read once.
                found = array[rows] if isinstance(rows, slice) else array.oindex[rows]
                return np.asarray(found)

        return Rows(array.shape, array.dtype, read)

    return Stores(tuple(sorted(arrays)), open_one)
