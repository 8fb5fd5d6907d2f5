"""Examples as pictures of eight bits: images, the middle slices of volumes, and lines of series."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

LINE = (48, 96)  # pixels of the picture of a series, high and wide
COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44))  # of its channels, again and again


class Ends(NamedTuple):
    """The values that are black and white, or below and above in the picture of a series."""

    low: float
    high: float


def form(shape: tuple[int, ...]) -> str | None:
    """Return what an example of a shape is seen as, None where it cannot be.

    [2] are "points" in the plane, other [n] and [n, channels] "lines" where there are two or more
    positions, [h, w, channels] an "image" and [d, h, w, channels] its middle "slice".
    """
    if shape == (2,):
        return "points"
    found = {1: "lines", 2: "lines", 3: "image", 4: "slice"}.get(len(shape))
    return None if found == "lines" and shape[0] < 2 else found


def has_picture(shape: tuple[int, ...]) -> bool:
    """Return whether an example of a shape has a picture of its own, as points do not."""
    return form(shape) not in (None, "points")


def size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return height and width of the picture of an example that has one."""
    height, width = LINE if form(shape) == "lines" else shape[-3:-1]
    return height, width


def ends(x: np.ndarray, levels: int | None) -> Ends:
    """Return the ends of examples [n, *d]: the first and the last of the `levels` of integers.

    Of real numbers they are the smallest and the largest of what is seen.
    """
    if levels is not None:
        return Ends(0.0, levels - 1.0)
    shown = _seen(x)
    return Ends(float(shown.min()), float(shown.max()))


def of(x: np.ndarray, between: Ends) -> np.ndarray:
    """Return a picture of each of some examples [n, *d] that have one, [n, h, w, 1 or 3].

    Three channels are colours; of others the first is shown. Lines are there for all channels.
    """
    if form(x.shape[1:]) == "lines":
        return np.stack([_line(one.reshape(len(one), -1), between) for one in x])
    return eight_bit(_seen(x), between)


def _seen(x: np.ndarray) -> np.ndarray:
    """Return the part of examples [n, *d] that their pictures show."""
    if form(x.shape[1:]) == "lines":
        return x
    if form(x.shape[1:]) == "slice":
        x = x[:, x.shape[1] // 2]
    return x if x.shape[-1] == 3 else x[..., :1]


def eight_bit(x: np.ndarray, between: Ends) -> np.ndarray:
    """Return numbers as the nearest of 256 between two ends."""
    unit = 255.0 / ((between.high - between.low) or 1.0)
    return np.clip(np.round((x.astype(np.float64) - between.low) * unit), 0, 255).astype(np.uint8)


def _line(x: np.ndarray, between: Ends) -> np.ndarray:
    height, width = LINE
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    across = np.linspace(1, width - 2, len(x))
    for i, values in enumerate(x.T):
        share = eight_bit(values, between) / 255.0
        down = 1 + (height - 3) * (1.0 - share)
        points = [(float(a), float(b)) for a, b in zip(across, down, strict=True)]
        pen.line(points, fill=COLOURS[i % len(COLOURS)])
    return np.asarray(canvas)
