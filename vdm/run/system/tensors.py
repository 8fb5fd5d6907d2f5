"""Arrays with texts about them in one file of the safetensors format, under a checksum."""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vdm.run.errors import UserError
from vdm.run.system.files import check_is_file, replacing


class Tensors(NamedTuple):
    """What a file holds, and the SHA-256 of it all in hex."""

    about: dict[str, str]
    arrays: dict[str, np.ndarray]
    checksum: str


def write(path: pathlib.Path, about: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays and texts into a file, which is there only when it is whole."""
    # In the order of C: the format stores memory as it lies.
    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with replacing(path) as temporary:
        save_file(plain, temporary, {**about, "checksum": checksum(about, plain)})


def read(path: pathlib.Path, form: str, what: str) -> Tensors:
    """Return what a file holds whose text "format" is `form`.

    `what` says in words what such a file is and who writes it. Raises UserError for a file that is
    missing, damaged, or of another format.
    """
    if not path.exists():
        raise UserError(f"no file {str(path)!r}, relative to {path.cwd()}")
    check_is_file(path)
    try:
        with safe_open(path, "np") as file:
            about = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged, or no file of this format: {error}") from error
    if about.get("format") != form:
        raise UserError(
            f"{path} is no {what} (format {form!r}), got {about.get('format', 'none')!r}"
        )
    claimed = about.pop("checksum", "")
    found = checksum(about, arrays)
    if claimed != found:
        raise UserError(f"{path} is damaged: its checksum does not match")
    return Tensors(about, arrays, found)


def checksum(about: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of all texts and arrays with their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(about):
        digest.update(f"{name}\0{about[name]}\0".encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}\0{array.dtype}\0{list(array.shape)}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
