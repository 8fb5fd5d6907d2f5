"""Pictures as data: addresses: single images, and cells of the grids of samples of training."""

import base64
import io
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vdm.run import figures, sample, views
from vdm.run.report.layout import Gallery, Picture
from vdm.run.report.read import step_of

SMALL, LARGE = 64, 96  # pixels of a cell
MOST_ROWS = 8  # of steps, evenly spaced, the last among them
MOST_CELLS = 8
MOST_GRIDS, GRID_WIDTH = 4, 640


def picture(view: np.ndarray, text: str, label: str = "") -> Picture:
    """Return an image [h, w, 1 or 3] of eight bits; a large one is made smaller."""
    return _picture(figures.image(view), text, label)


def while_training(
    grids: Sequence[pathlib.Path], shape: tuple[int, ...], *, cells: bool
) -> Gallery | None:
    """Return what was drawn at some of the steps; None where no grid can be read.

    Where the grids have `cells`, one for an example, the first few, which start from the same noise
    at every step, in a row; of points the pictures themselves.
    """
    rows = []
    for path in _some(grids, MOST_ROWS if cells else MOST_GRIDS):
        step = step_of(path)
        try:
            with Image.open(path, formats=["PNG"]) as image:
                found = _cells(image, shape, step) if cells else _whole(image, step)
        except (OSError, SyntaxError):  # the second is Pillow's for a damaged PNG
            continue
        rows.append((f"step {step:,}", found))
    if not rows:
        return None
    caption = "Each column starts from the same noise at every step." if cells else ""
    return Gallery(f"Samples drawn during training. {caption}".strip(), tuple(rows))


def _cells(image: Image.Image, shape: tuple[int, ...], step: int) -> tuple[Picture, ...]:
    """Cut the first images out of a grid of `vdm.run.figures`, at their own size."""
    height, width = views.size(shape)
    columns = figures.columns(sample.GRID_SIZE)
    factor = max(1, image.width // (columns * (width + 1) + 1))
    small = image.reduce(factor) if factor > 1 else image
    found = []
    for i in range(min(MOST_CELLS, columns)):
        left = 1 + i * (width + 1)
        cell = small.crop((left, 1, left + width, 1 + height))
        found.append(_picture(cell, f"sample {i + 1} at step {step:,}"))
    return tuple(found)


def _whole(image: Image.Image, step: int) -> tuple[Picture, ...]:
    image.thumbnail((GRID_WIDTH, GRID_WIDTH))
    return (Picture(_address(image), *image.size, f"samples and data at step {step:,}"),)


def _picture(image: Image.Image, text: str, label: str = "") -> Picture:
    if max(image.size) > LARGE:
        image = image.copy()
        image.thumbnail((LARGE, LARGE))
    scale = max(1, SMALL // max(image.size))
    return Picture(_address(image), image.width * scale, image.height * scale, text, label)


def _address(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _some(grids: Sequence[pathlib.Path], most: int) -> list[pathlib.Path]:
    if len(grids) <= most:
        return list(grids)
    return [grids[i] for i in np.linspace(0, len(grids) - 1, most).round().astype(int)]
