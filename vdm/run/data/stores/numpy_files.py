"""The arrays of .npy and .npz files, and of a folder of them.

A .npy file is mapped into memory and may be larger than it; a .npz is always read whole.
"""

import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np

from vdm.run.data.stores.names import OWN, SPLIT_NAMES, check_names
from vdm.run.data.stores.store import Stores, reading
from vdm.run.errors import UserError
from vdm.run.system.files import check_is_file

ENDINGS = (".npy", ".npz")


def stores(path: pathlib.Path) -> Stores:
    """Return the arrays of a file or a folder; raises UserError for a damaged file."""
    arrays = _folder(path) if path.is_dir() else read_file(path)
    return Stores(tuple(arrays), arrays.__getitem__)


def read_file(file: pathlib.Path) -> Mapping[str, np.ndarray]:
    """Return the arrays of a file by name, that of a .npy as x; raises UserError for a bad file."""
    if file.suffix not in ENDINGS:
        raise UserError(f"expected a .npy or .npz file: got {file.name!r}")
    check_is_file(file)
    with reading(file, file.suffix):
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


def _folder(path: pathlib.Path) -> Mapping[str, np.ndarray]:
    files = sorted(file for file in path.iterdir() if _is_array(file))
    check_names([file.stem for file in files], SPLIT_NAMES, path)
    joined: dict[str, np.ndarray] = {}
    for file in files:
        found = read_file(file)
        if file.suffix == ".npz":
            if file.stem not in ("train", "test"):
                raise UserError(f"{path} is read as {file.stem}.npy: got {file.name}")
            check_names(found, ("x", *OWN), file)
        for key, value in found.items():
            name = file.stem if key == "x" else f"{file.stem}_{key}"
            if name in joined:
                raise UserError(f"{path} has {name} twice: in {file.name} and in another file")
            joined[name] = value
    return joined


def _is_array(file: pathlib.Path) -> bool:
    return file.suffix in ENDINGS and not file.name.startswith(".")
