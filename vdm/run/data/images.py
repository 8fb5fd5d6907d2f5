"""A folder of images of one size, decoded without loss.

With subfolders train/ and test/ those are the splits; without them a tenth of the images is
held out as test. Where every image of the data set lies in a subfolder, these are its classes.
Images of 8 bits have 256 levels. Files of 16 bits often hold numbers of 10, 12 or 14: their largest
one says how many levels are needed.
"""

import concurrent.futures
import functools
import hashlib
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vdm.run.data import picture
from vdm.run.data.dataset import READERS, Dataset, Examples, Largest, Stored, content_hash
from vdm.run.data.picture import GREYS, Head
from vdm.run.errors import UserError
from vdm.run.system.files import check_is_file

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MOST_LINKS = 4  # to folders, on the way to an image


class Folder(NamedTuple):
    """A folder without its decoded images: paths are relative, sorted."""

    files: dict[str, tuple[str, ...]]  # by split
    classes: tuple[str, ...] | None
    shape: tuple[int, int, int]
    dtype: np.dtype


def load(path: str, split: str) -> Dataset:
    """Return a split of a folder of images; raises UserError naming the bad file."""
    root, folder = pathlib.Path(path), survey(path)
    files = folder.files[split]

    def take(index: np.ndarray) -> Examples:
        chosen = [files[i] for i in index]
        x = np.stack([decode(root / file, folder) for file in chosen])
        ids = np.array([f"{f}:{content_hash(i)}" for f, i in zip(chosen, x, strict=True)])
        return Examples(x, _labels(chosen, folder, split), ids)

    largest = largest_of(root, files, folder)
    return Dataset(
        "images",
        split,
        Stored(len(files), folder.shape, folder.dtype, take),
        version=f"images/{root.resolve().name}",
        num_classes=None if folder.classes is None else len(folder.classes),
        levels=256 if largest is None else None,
        largest=largest,
        taken="" if largest is None else _taken(path, len(files), largest),
        files=files,
    )


def largest_of(root: pathlib.Path, files: Sequence[str], folder: Folder) -> Largest | None:
    """Return the largest number of images of 16 bits, which decodes them once; None of 8 bits."""
    if folder.dtype != np.uint16:
        return None
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda file: int(decode(root / file, folder).max()), files)
        value, file = max(zip(found, files, strict=True), key=lambda pair: pair[0])
    return Largest(value, file)


def _taken(path: str, size: int, largest: Largest) -> str:
    """Return a line that says how many of the 16 bits are used."""
    return (
        f"{path}: {size:,} grey images of 16 bits, of which {max(1, largest.value.bit_length())} "
        f"are used: the largest number is {largest.value}, in {largest.where}"
    )


@functools.lru_cache(maxsize=4)
def survey(path: str) -> Folder:
    """Read the folder and the header of every image file; no image is decoded."""
    root = pathlib.Path(path)
    if not root.is_dir():
        raise UserError(f"no folder {path!r} (data.path), relative to {root.cwd()}")
    everything = images_in(root)
    if has_splits(root):
        parts = {s: [f for f in everything if f.startswith(f"{s}/")] for s in ("train", "test")}
        depth = 1
    else:
        # By the hash of the name: adding an image moves almost none of the others.
        order = sorted(everything, key=lambda file: hashlib.sha256(file.encode()).digest())
        num_test = -(-len(order) // 10)
        parts = {"train": sorted(order[num_test:]), "test": sorted(order[:num_test])}
        depth = 0
    for split, files in parts.items():
        if not files:
            raise UserError(
                f"{path!r} has no images for the split {split}: expected files ending in "
                f"{', '.join(ENDINGS)} in train/ and test/, or at least two in the folder itself"
            )
    shape, dtype = common(root, [*parts["train"], *parts["test"]])
    classes = classes_of([file for files in parts.values() for file in files], depth)
    return Folder({s: tuple(files) for s, files in parts.items()}, classes, shape, dtype)


def images_in(root: pathlib.Path) -> list[str]:
    """Return all images in a folder, sorted; raises UserError for a name that is not UTF-8."""
    found = sorted(_images_below(root))
    for file in found:
        if not is_unicode(file):
            raise UserError(f"the name of an image is not UTF-8: {str(root / file)!r}")
    return found


def has_splits(root: pathlib.Path) -> bool:
    """Return whether a folder has a subfolder of a split, train/ or test/."""
    return (root / "train").is_dir() or (root / "test").is_dir()


def classes_of(files: list[str], depth: int) -> tuple[str, ...] | None:
    """Return the names of the subfolders, below those of splits, if every image lies in one."""
    names = [file.split("/")[depth:] for file in files]
    return tuple(sorted({n[0] for n in names})) if all(len(n) > 1 for n in names) else None


def _images_below(root: pathlib.Path) -> Iterator[str]:
    """Yield all images relative to the folder, through links too, but no hidden files.

    A link back to a folder above is not followed, which would never end. Raises UserError for a
    folder behind more links than MOST_LINKS, whose number can grow without bound.
    """
    above: dict[pathlib.Path, frozenset[pathlib.Path]] = {}  # real folders, the own one too
    links = {root: 0}
    for folder, inner, names in os.walk(root, followlinks=True):
        here = pathlib.Path(folder)
        above[here] = above.get(here.parent, frozenset()) | {here.resolve()}
        inner[:] = [
            name
            for name in inner
            if not name.startswith(".") and (here / name).resolve() not in above[here]
        ]
        for name in inner:
            links[here / name] = links[here] + (here / name).is_symlink()
            if links[here / name] > MOST_LINKS:
                raise UserError(
                    f"{here / name} is behind more than {MOST_LINKS} links to folders: expected a "
                    "plainer tree of folders"
                )
        for name in names:
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                yield (here / name).relative_to(root).as_posix()


def common(root: pathlib.Path, files: list[str]) -> tuple[tuple[int, int, int], np.dtype]:
    """Return the shape and type that all images have; raises UserError naming two that differ."""
    # What Pillow warns of it then reads or refuses. For good: among threads that decode, a filter
    # for a while would not be safe.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    heads = [_head(root / file) for file in files]
    # A palette of greys is grey among greys, and colour among colours.
    modes = {mode for _, mode in heads} - {GREYS}
    (size, mode), known = heads[0], modes.pop() if len(modes) == 1 else GREYS
    for file, head in zip(files, heads, strict=True):
        fits = head[1] == mode or (GREYS in (head[1], mode) and known in ("L", "RGB"))
        if head[0] != size or not fits:
            raise UserError(
                f"the images in {str(root)!r} differ: {files[0]} is {_said(heads[0])}, {file} is "
                f"{_said(head)}; expected one size and one kind"
            )
    width, height = size
    final = "L" if known == GREYS else known
    dtype = np.dtype(np.uint16 if final == "I;16" else np.uint8)
    return (height, width, 3 if final == "RGB" else 1), dtype


def _head(file: pathlib.Path) -> Head:
    check_is_file(file)
    return picture.head(file, str(file))


def _said(head: Head) -> str:
    (width, height), mode = head
    return f"{width}×{height} {mode}"


def decode(file: pathlib.Path, folder: Folder) -> np.ndarray:
    """Return an image [h, w, c]; raises UserError unless it has the folder's shape and type.

    Checksums are verified where the format has them, as PNG does.
    """
    check_is_file(file)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {file}: {error.strerror}") from error
    x = picture.decode(content, str(file), grey=folder.shape[-1] == 1)
    if x.shape != folder.shape or x.dtype != folder.dtype:
        raise UserError(f"the image {file} has changed while it was in use")
    return x


def is_unicode(text: str) -> bool:
    """Return whether a name can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _labels(files: list[str], folder: Folder, split: str) -> np.ndarray | None:
    if folder.classes is None:
        return None
    prefix = f"{split}/" if files[0].startswith(f"{split}/") else ""
    names = [file.removeprefix(prefix).split("/")[0] for file in files]
    return np.array([folder.classes.index(name) for name in names], np.int32)
