"""Stores of examples: .npy and .npz files, HDF5, zarr, and folders of Hugging Face datasets."""

import pathlib

from vdm.run.data.stores import hdf5, hugging_face, numpy_files, zarr_folder
from vdm.run.data.stores.store import Store, Stores
from vdm.run.errors import UserError

__all__ = ["Store", "Stores", "stores"]


def stores(path: pathlib.Path) -> Stores:
    """Return the arrays of a file or a folder of any kind; raises UserError for a bad one."""
    if not path.exists():
        raise UserError(f"no file or folder {str(path)!r} (data.path), relative to {path.cwd()}")
    if path.is_dir():
        if zarr_folder.is_zarr(path):
            return zarr_folder.stores(path)
        return (hugging_face if hugging_face.is_saved(path) else numpy_files).stores(path)
    if path.suffix in hdf5.ENDINGS:
        return hdf5.stores(path)
    if path.suffix not in numpy_files.ENDINGS:
        raise UserError(
            f"arrays are read from .npy, .npz, .h5 and .hdf5 files or a folder: got {path.name!r}"
        )
    return numpy_files.stores(path)
