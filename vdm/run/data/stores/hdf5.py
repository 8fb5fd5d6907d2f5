"""The arrays of an HDF5 file.

The file is opened anew for every read, which takes a seventh of a millisecond: nothing is shared
by processes that fork, and another program can write the file between two reads. h5py itself lets
one thread read at a time. Links are not followed.
"""

import pathlib
from typing import Any

import numpy as np

from vdm.run.data.stores.store import TEXT, Rows, Store, Stores, missing, reading
from vdm.run.system.files import check_is_file

ENDINGS = (".h5", ".hdf5")


def stores(path: pathlib.Path) -> Stores:
    """Return the arrays of a file by their paths in it; raises UserError for a damaged file."""
    try:
        import h5py  # late: it is of an extra
    except ImportError as error:
        raise missing("h5py", path) from error
    check_is_file(path)
    names: list[str] = []

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            names.append(name)

    def open_one(name: str) -> Store:
        with reading(path, "HDF5"), h5py.File(path, "r") as file:
            array = file[name]
            text = h5py.check_string_dtype(array.dtype) is not None
            return Rows(array.shape or (), TEXT if text else array.dtype, read_of(name))

    def read_of(name: str) -> Any:
        def read(rows: np.ndarray | slice) -> np.ndarray:
            with reading(path, "HDF5"), h5py.File(path, "r") as file:
                return file[name][rows]

        return read

    with reading(path, "HDF5"), h5py.File(path, "r") as file:
        file.visititems(note)
    return Stores(tuple(names), open_one)
