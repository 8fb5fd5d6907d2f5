"""A folder of images of one size, decoded without loss.

With subfolders train/ and test/ those are the splits; without them a tenth of the images is
held out as test. Where every image of the data set lies in a subfolder, these are its classes.
Images of 8 bits have 256 levels. Files of 16 bits often hold numbers of 10, 12 or 14: their largest
one says how many levels are needed.
"""

import concurrent.futures
import functools
import hashlib
import io
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from vdm.run.data.dataset import READERS, Dataset, Examples, Largest, Stored, content_hash
from vdm.run.errors import UserError
from vdm.run.system.files import check_is_file

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# By its content Pillow takes a file for any of its formats, some of which start other programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MOST_LINKS = 4  # to folders, on the way to an image
ORIENTATION = 0x0112  # the EXIF tag of how a camera was held; 1 is upright
GREYS = "palette of greys"
# The mode in which an image of each of Pillow's modes is read, without loss.
MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "I;16": "I;16"}


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

    largest = _largest(root, files, folder) if folder.dtype == np.uint16 else None
    return Dataset(
        "images",
        split,
        Stored(len(files), folder.shape, folder.dtype, take),
        version=f"images/{root.resolve().name}",
        num_classes=None if folder.classes is None else len(folder.classes),
        levels=256 if largest is None else None,
        largest=largest,
        taken="" if largest is None else _taken(path, len(files), largest),
    )


def _largest(root: pathlib.Path, files: tuple[str, ...], folder: Folder) -> Largest:
    """Return the largest number of all images, which decodes them once."""
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


def _head(file: pathlib.Path) -> tuple[tuple[int, int], str]:
    with _opened(file) as image:
        kind = _kind(image, file)
        if kind not in MODES:
            raise UserError(
                f"{file} is an image of the kind {kind}: expected one frame, grey (8 or 16 bits) "
                "or RGB (8 bits)"
            )
        return image.size, _mode(image)


def _mode(image: Image.Image) -> str:
    return GREYS if _has_greys(image) else MODES.get(image.mode, image.mode)


def _has_greys(image: Image.Image) -> bool:
    """Return whether an image has a palette of nothing but greys; its pixels are not decoded."""
    palette = image.palette if image.mode == "P" else None
    if palette is None or (palette.rawmode or palette.mode) not in ("RGB", "BGR"):
        return False
    values = bytes(palette.palette)
    return values[0::3] == values[1::3] == values[2::3]


def _kind(image: Image.Image, file: pathlib.Path) -> str:
    """Return Pillow's name of the mode, and the part of the file that this mode would lose."""
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception as error:
        raise UserError(f"cannot read the image {file}: {_reason(error)}") from error
    if frames > 1:
        return f"{image.mode} of {frames} frames"
    if "transparency" in image.info:
        return f"{image.mode} with transparency"
    # Pillow reads the upper half of these bits; only the decoder's argument shows it.
    if image.mode == "RGB" and any(";16" in str(tile) for tile in getattr(image, "tile", ())):
        return "RGB of 16 bits"
    try:
        # Pillow decodes a whole PNG to look for EXIF data behind the pixels.
        has_exif = image.format != "PNG" or "exif" in image.info
        turned = has_exif and image.getexif().get(ORIENTATION) in range(2, 9)
    except Exception as error:
        raise UserError(f"cannot read the image {file}: {_reason(error)}") from error
    if turned:
        return f"{image.mode} to be turned as its EXIF orientation says"
    return image.mode


def _said(head: tuple[tuple[int, int], str]) -> str:
    (width, height), mode = head
    return f"{width}×{height} {mode}"


def _opened(file: pathlib.Path) -> Image.Image:
    check_is_file(file)
    try:
        return Image.open(file, formats=FORMATS)
    # Whatever error a damaged file causes in a decoder, the file is the cause.
    except Exception as error:
        raise UserError(f"cannot read the image {file}: {_reason(error)}") from error


def decode(file: pathlib.Path, folder: Folder) -> np.ndarray:
    """Return an image [h, w, c]; raises UserError unless it has the folder's shape and type.

    Checksums are verified where the format has them, as PNG does.
    """
    check_is_file(file)
    try:
        content = file.read_bytes()
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.verify()
        # An image that was verified has to be opened again.
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            mode = MODES.get(image.mode, image.mode)
            if folder.shape[-1] == 1 and _has_greys(image):
                mode = "L"
            x = np.asarray(image if image.mode == mode else image.convert(mode))
    except Exception as error:
        raise UserError(f"cannot read the image {file}: {_reason(error)}") from error
    x = x.reshape(*x.shape[:2], -1)
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


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _labels(files: list[str], folder: Folder, split: str) -> np.ndarray | None:
    if folder.classes is None:
        return None
    prefix = f"{split}/" if files[0].startswith(f"{split}/") else ""
    names = [file.removeprefix(prefix).split("/")[0] for file in files]
    return np.array([folder.classes.index(name) for name in names], np.int32)
