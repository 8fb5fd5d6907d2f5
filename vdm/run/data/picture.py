"""One image file: its size and kind from the header, and its pixels without loss."""

import io
import pathlib

import numpy as np
from PIL import Image

from vdm.run.errors import UserError

# By its content Pillow takes a file for any of its formats, some of which start other programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
ORIENTATION = 0x0112  # the EXIF tag of how a camera was held; 1 is upright
GREYS = "palette of greys"
# The mode in which an image of each of Pillow's modes is read, without loss.
MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "I;16": "I;16"}

Head = tuple[tuple[int, int], str]  # width and height; the mode that is read, or GREYS


def head(file: pathlib.Path | io.BytesIO, what: str) -> Head:
    """Return the size and the kind of an image, which is not decoded; `what` names it.

    Raises UserError for what is no image, and for one that would not be read without loss.
    """
    try:
        opened = Image.open(file, formats=FORMATS)
    # Whatever error a damaged file causes in a decoder, the file is the cause.
    except Exception as error:
        raise UserError(f"cannot read the image {what}: {reason(error)}") from error
    with opened as image:
        kind = _kind(image, what)
        if kind not in MODES:
            raise UserError(
                f"{what} is an image of the kind {kind}: expected one frame, grey (8 or 16 bits) "
                "or RGB (8 bits)"
            )
        return image.size, GREYS if _has_greys(image) else MODES.get(image.mode, image.mode)


def decode(content: bytes, what: str, *, grey: bool) -> np.ndarray:
    """Return an image [h, w, c] from the bytes of its file; raises UserError for damaged ones.

    Checksums are verified where the format has them, as PNG does. A palette of greys has one
    channel among grey images.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.verify()
        # An image that was verified has to be opened again.
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            mode = "L" if grey and _has_greys(image) else MODES.get(image.mode, image.mode)
            x = np.asarray(image if image.mode == mode else image.convert(mode))
    except Exception as error:
        raise UserError(f"cannot read the image {what}: {reason(error)}") from error
    return x.reshape(*x.shape[:2], -1)


def reason(error: Exception) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _has_greys(image: Image.Image) -> bool:
    """Return whether an image has a palette of nothing but greys; its pixels are not decoded."""
    palette = image.palette if image.mode == "P" else None
    if palette is None or (palette.rawmode or palette.mode) not in ("RGB", "BGR"):
        return False
    values = bytes(palette.palette)
    return values[0::3] == values[1::3] == values[2::3]


def _kind(image: Image.Image, what: str) -> str:
    """Return Pillow's name of the mode, and the part of the file that this mode would lose."""
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception as error:
        raise UserError(f"cannot read the image {what}: {reason(error)}") from error
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
        raise UserError(f"cannot read the image {what}: {reason(error)}") from error
    if turned:
        return f"{image.mode} to be turned as its EXIF orientation says"
    return image.mode
