"""What `vdm compress` takes and `vdm decompress` gives back: arrays of integers and PNG images.

    x.npy     examples, the batch axis first; integers of any width, which is kept
    x.npz     one such array, under any name, or x with its conditions: labels, cond, cond_field
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
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from vdm.condition import Conditions
from vdm.run import figures
from vdm.run.compression.header import Header
from vdm.run.data import images
from vdm.run.data.condition import KINDS
from vdm.run.data.stores import numpy_files
from vdm.run.data.stores.names import OWN, check_names
from vdm.run.errors import UserError
from vdm.run.system.files import new_folder, replacing

NAMES = {kind: name for kind, _, name in KINDS}  # of the arrays of conditions
Put = Callable[[range, np.ndarray, Conditions], None]


class Contents(NamedTuple):
    """Examples to compress; `take(range)` reads some of them.

    `conditions` are those of an .npz, which are `beside` x in it, or the classes of a folder of
    images that has a subfolder for each of them, of which there are `num_folders`.
    """

    path: pathlib.Path
    kind: str
    names: tuple[str, ...]
    shape: tuple[int, ...]  # of one example
    dtype: np.dtype
    size: int
    take: Callable[[range], np.ndarray]
    conditions: Conditions = Conditions()
    beside: bool = False
    num_folders: int | None = None


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
    name, parts = _arrays(found, path)
    x = found[name]
    if x.dtype.kind not in "iub" or x.ndim < 2 or 0 in x.shape:
        raise UserError(
            f"{path}: expected integers with the batch axis first: got {x.dtype} {list(x.shape)}"
        )
    kind = path.suffix[1:].lower()
    names = (name,) if kind == "npz" else ()

    def take(rows: range) -> np.ndarray:
        return np.asarray(x[rows.start : rows.stop])

    beside = any(part is not None for part in parts)
    return Contents(path, kind, names, x.shape[1:], x.dtype, len(x), take, parts, beside)


def _arrays(found: Mapping[str, np.ndarray], path: pathlib.Path) -> tuple[str, Conditions]:
    """Return the name of the array of examples, and the conditions that stand beside it."""
    if len(found) == 1:
        return next(iter(found)), Conditions()
    if "x" not in found:
        raise UserError(
            f"{path} has the arrays {', '.join(found) or 'none'}: expected exactly one array, or x "
            f"with {', '.join(OWN)}, since others would be lost"
        )
    check_names(found, ("x", *OWN), path)
    return "x", Conditions(**{kind: found.get(name) for kind, name in NAMES.items()})


@contextlib.contextmanager
def writing(path: pathlib.Path, header: Header) -> Iterator[Put]:
    """Yield put(rows, examples, conditions); what it makes is there when the block has succeeded.

    Conditions are written where the header says that they stood beside the examples. Rows that are
    not put are zeros in an array, and no files in a folder. Raises UserError for
    a path that cannot be written, and as `check_target`.
    """
    check_target(path, header)
    if header.kind == "images":
        with new_folder(path) as folder:
            yield lambda rows, x, _: _write_images(folder, header, rows, x)
        return
    with replacing(path) as temporary:
        if header.kind == "png":
            yield lambda rows, x, _: _write_image(temporary, x[0])
            return
        whole: np.ndarray
        own = header.conditions if header.beside else ()
        try:
            dtype, shape = np.dtype(header.dtype), (header.num_examples, *header.shape)
            if header.kind == "npy":  # limited by the disk, not by the memory
                whole = np.lib.format.open_memmap(temporary, "w+", dtype, shape)
            else:
                whole = np.zeros(shape, dtype)
            beside = {kind: np.zeros((len(whole), *form), kept) for kind, kept, form in own}
        except (MemoryError, ValueError) as error:
            raise UserError(f"cannot make an array {list(shape)} for {path}: {error}") from error

        def put(rows: range, x: np.ndarray, conditions: Conditions) -> None:
            whole[rows.start : rows.stop] = x
            for kind, array in beside.items():
                array[rows.start : rows.stop] = getattr(conditions, kind)

        yield put
        if isinstance(whole, np.memmap):
            whole.flush()
        else:
            named = {NAMES[kind]: array for kind, array in beside.items()}
            _write_archive(temporary, {header.names[0]: whole, **named})


def check_target(path: pathlib.Path, header: Header) -> None:
    """Raise UserError for the wrong ending, and for a folder that exists already."""
    if header.kind == "images":
        if path.exists():
            raise UserError(f"{path} exists already: expected a new folder")
    elif path.suffix.lower() != f".{header.kind}":
        raise UserError(
            f"{path}: the compressed data are a .{header.kind} file: expected this ending"
        )


def _write_archive(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz; not by np.savez, for which some names are arguments of its own."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _images(path: pathlib.Path) -> Contents:
    root, names = (path, _png_files(path)) if path.is_dir() else (path.parent, [path.name])
    shape, dtype = images.common(root, names)
    folder = images.Folder({}, None, shape, dtype)

    def take(rows: range) -> np.ndarray:
        return np.stack([images.decode(root / names[i], folder) for i in rows])

    if not path.is_dir():
        return Contents(path, "png", (), shape, dtype, 1, take)
    depth = int(images.has_splits(root))
    classes = images.classes_of(names, depth) or ()
    parts = Conditions()
    if classes:
        where = [classes.index(name.split("/")[depth]) for name in names]
        parts = Conditions(np.array(where, np.int32))
    return Contents(
        path,
        "images",
        tuple(names),
        shape,
        dtype,
        len(names),
        take,
        parts,
        num_folders=len(classes),
    )


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
