"""What `vdm compress` takes and `vdm decompress` gives back: arrays of integers and PNG images.

    x.npy     examples, the batch axis first; integers of any width, which is kept
    x.npz     one such array, under any name
    x.png     one image
    folder/   PNG images of one size and kind, in subfolders too

Values are kept exactly, files are newly written: a PNG's text, colour profile and palette are not
kept, one bit becomes eight, and how well it was compressed is lost. A folder must hold nothing
else, hidden files and links to folders included; empty subfolders are lost.
"""

import contextlib
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from vdm.run import figures
from vdm.run.compression.format import Header
from vdm.run.data import images
from vdm.run.data.stores import numpy_files
from vdm.run.errors import UserError
from vdm.run.system.files import new_folder, replacing

Put = Callable[[range, np.ndarray], None]


class Contents(NamedTuple):
    """Examples to compress; `take(range)` reads some of them."""

    kind: str
    names: tuple[str, ...]
    shape: tuple[int, ...]  # of one example
    dtype: np.dtype
    size: int
    take: Callable[[range], np.ndarray]


def read(path: pathlib.Path) -> Contents:
    """Return the contents of a path; raises UserError for what could not be restored exactly."""
    if not path.exists():
        raise UserError(f"no file or folder {str(path)!r}")
    if path.is_dir() or path.suffix.lower() == ".png":
        return _images(path)
    if path.suffix.lower() not in numpy_files.ENDINGS:
        raise UserError(
            f"{path}: expected a .npy, .npz or .png file, or a folder of .png images: got "
            f"{path.suffix or 'no ending'!r}"
        )
    found = numpy_files.read_file(path)
    if len(found) != 1:
        raise UserError(
            f"{path} has the arrays {', '.join(found) or 'none'}: expected exactly one array, "
            "since the others would be lost"
        )
    ((name, x),) = found.items()
    if x.dtype.kind not in "iub" or x.ndim < 2 or 0 in x.shape:
        raise UserError(
            f"{path}: expected integers with the batch axis first: got {x.dtype} {list(x.shape)}"
        )
    kind = path.suffix[1:].lower()
    names = (name,) if kind == "npz" else ()

    def take(rows: range) -> np.ndarray:
        return np.asarray(x[rows.start : rows.stop])

    return Contents(kind, names, x.shape[1:], x.dtype, len(x), take)


@contextlib.contextmanager
def writing(path: pathlib.Path, header: Header) -> Iterator[Put]:
    """Yield put(rows, examples); the file or folder is there when the block has succeeded.

    Rows that are not put are zeros in an array, and no files in a folder. Raises UserError for
    a path that cannot be written, and as `check_target`.
    """
    check_target(path, header)
    if header.kind == "images":
        with new_folder(path) as folder:
            yield lambda rows, x: _write_images(folder, header, rows, x)
        return
    with replacing(path) as temporary:
        if header.kind == "png":
            yield lambda rows, x: _write_image(temporary, x[0])
            return
        whole: np.ndarray
        try:
            dtype, shape = np.dtype(header.dtype), (header.num_examples, *header.shape)
            if header.kind == "npy":  # limited by the disk, not by the memory
                whole = np.lib.format.open_memmap(temporary, "w+", dtype, shape)
            else:
                whole = np.zeros(shape, dtype)
        except (MemoryError, ValueError) as error:
            raise UserError(f"cannot make an array {list(shape)} for {path}: {error}") from error

        def put(rows: range, x: np.ndarray) -> None:
            whole[rows.start : rows.stop] = x

        yield put
        if isinstance(whole, np.memmap):
            whole.flush()
        else:
            # Not by np.savez, for which some names are arguments of its own.
            with (
                zipfile.ZipFile(temporary, "w") as archive,
                archive.open(f"{header.names[0]}.npy", "w", force_zip64=True) as member,
            ):
                np.lib.format.write_array(member, whole, allow_pickle=False)


def check_target(path: pathlib.Path, header: Header) -> None:
    """Raise UserError for the wrong ending, and for a folder that exists already."""
    if header.kind == "images":
        if path.exists():
            raise UserError(f"{path} exists already: expected a new folder")
    elif path.suffix.lower() != f".{header.kind}":
        raise UserError(
            f"{path}: the compressed data are a .{header.kind} file: expected this ending"
        )


def _images(path: pathlib.Path) -> Contents:
    root, names = (path, _png_files(path)) if path.is_dir() else (path.parent, [path.name])
    shape, dtype = images.common(root, names)
    folder = images.Folder({}, None, shape, dtype)

    def take(rows: range) -> np.ndarray:
        return np.stack([images.decode(root / names[i], folder) for i in rows])

    if path.is_dir():
        return Contents("images", tuple(names), shape, dtype, len(names), take)
    return Contents("png", (), shape, dtype, 1, take)


def _png_files(root: pathlib.Path) -> list[str]:
    """Return the images in a folder; raises UserError if anything else is in it."""
    found = []
    for folder, inner, names in os.walk(root):
        here = pathlib.Path(folder)
        links = [name for name in inner if (here / name).is_symlink()]
        found += [(here / name).relative_to(root).as_posix() for name in [*names, *links]]
    if not found:
        raise UserError(f"{root} holds no .png images")
    if others := sorted(name for name in found if not name.lower().endswith(".png")):
        raise UserError(
            f"{root} holds {others[0]!r}: expected only .png images, since other files would be "
            "lost"
        )
    if not_text := [name for name in found if not images.is_unicode(name)]:
        raise UserError(f"the name of an image is not UTF-8: {not_text[0]!r}")
    return sorted(found)


def _write_images(folder: pathlib.Path, header: Header, rows: range, x: np.ndarray) -> None:
    for i, image in zip(rows, x, strict=True):
        file = folder / header.names[i]
        if folder.resolve() not in file.resolve().parents:
            raise UserError(f"the file name {header.names[i]!r} leads out of the folder")
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_image(file, image)


def _write_image(file: pathlib.Path, image: np.ndarray) -> None:
    figures.image(image).save(file, format="PNG", optimize=True)
