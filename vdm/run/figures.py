"""Pictures of data in files: a grid of examples, or a scatter of points."""

import math
import pathlib

import numpy as np
from PIL import Image

from vdm.run import views
from vdm.run.errors import UserError
from vdm.run.system.files import new_folder, replacing

MOST_PANELS = 36  # of sets, in a picture
MIN_IMAGE_SIZE = 48  # pixels of the picture; smaller images are enlarged by a whole factor


def kind(
    path: pathlib.Path, shape: tuple[int, ...], levels: int | None, *, of_sets: bool = False
) -> str:
    """Return what to write for examples of a shape: "array", "grid", "folder" or "scatter".

    A .npy holds any data; a .png shows points [2] as a scatter and other examples as a grid, each
    as `vdm.run.views` says; a new folder (a name without an ending) holds a .png of each integer
    image [h, w, 1 or 3]. Sets of points are an .npz ("array"), or a "scatter" of each. Raises
    UserError for another ending or shape, and for a folder that exists.
    """
    if path.suffix and path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}: it exists already and is not a file")
    if of_sets:
        if path.suffix not in (".png", ".npz"):
            raise UserError(f"sets are written as .npz or .png: got {path.name!r}")
        return "array" if path.suffix == ".npz" else "scatter"
    if path.suffix == ".npy":
        return "array"
    if path.suffix not in (".png", ""):
        raise UserError(
            f"samples are written as .png or .npy, or into a new folder: got {path.name!r}"
        )
    if path.suffix == "" and path.exists():
        raise UserError(f"{path} exists already: expected a new folder")
    if path.suffix == "" and levels is not None and len(shape) == 3 and shape[-1] in (1, 3):
        return "folder"
    form = views.form(shape)
    if path.suffix and form is not None:
        return "scatter" if form == "points" else "grid"
    raise UserError(
        f"{'real numbers' if levels is None else 'integers'} of shape {list(shape)} cannot be "
        f"drawn as {'a picture' if path.suffix else 'a folder of pictures'}: "
        "`vdm sample --out=NAME.npy` writes an array"
    )


def write(
    x: np.ndarray, path: pathlib.Path, *, levels: int | None, data: np.ndarray | None = None
) -> None:
    """Write examples as a picture or as an array, as `kind` says.

    A scatter shows them with as many points of `data`, the training set, if given.
    """
    how = kind(path, x.shape[1:], levels)
    if how == "folder":
        with new_folder(path) as folder:
            for i, one in enumerate(views.of(x, views.ends(x, levels))):
                image(one).save(folder / f"{i:06}.png")
        return
    with replacing(path) as temporary:
        if how == "array":
            np.save(temporary, x)
        elif how == "grid":
            _to_image(views.of(x, views.ends(x, levels))).save(temporary)
        else:
            _scatter({"samples": x} if data is None else {"data": data, "samples": x}, temporary)


def write_sets(x: np.ndarray, mask: np.ndarray, path: pathlib.Path) -> None:
    """Write sets of points as x and mask in an .npz, or as a panel for each of the first of them.

    A panel has the first two numbers of every point, or the only one.
    """
    with replacing(path) as temporary:
        if kind(path, x.shape[1:], None, of_sets=True) == "array":
            np.savez(temporary, x=x, mask=mask)
            return
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        num = min(len(x), MOST_PANELS)
        across = columns(num)
        down = math.ceil(num / across)
        figure = Figure(figsize=(1.6 * across, 1.6 * down), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, points, there in zip(panels, x[:num], mask[:num], strict=False):
            shown = points[there]
            axes.scatter(shown[:, 0], shown[:, 1 % shown.shape[1]], s=6, linewidths=0)
        for axes in panels[num:]:
            axes.set_axis_off()
        canvas.print_png(str(temporary))


def grid(x: np.ndarray) -> np.ndarray:
    """Return images [n, h, w, c] laid out as one [H, W, c] grid, one pixel apart."""
    n, h, w, c = x.shape
    across = columns(n)
    rows = math.ceil(n / across)
    whole = np.zeros((rows * (h + 1) + 1, across * (w + 1) + 1, c), x.dtype)
    for i, one in enumerate(x):
        top, left = 1 + (i // across) * (h + 1), 1 + (i % across) * (w + 1)
        whole[top : top + h, left : left + w] = one
    return whole


def columns(n: int) -> int:
    """Return the number of columns of a grid of n images."""
    return math.ceil(math.sqrt(n))


def enlargement(height: int, width: int) -> int:
    """Return the whole factor by which images of a size are enlarged in a grid."""
    return max(1, math.ceil(MIN_IMAGE_SIZE / max(height, width)))


def _to_image(pages: np.ndarray) -> Image.Image:
    factor = enlargement(*pages.shape[1:3])
    return image(grid(pages).repeat(factor, axis=0).repeat(factor, axis=1))


def image(x: np.ndarray) -> Image.Image:
    """Return integers [h, w, 1 or 3] as an image of Pillow's."""
    # Grey images have no axis of channels for Pillow.
    return Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x)


def _scatter(panels: dict[str, np.ndarray], path: pathlib.Path) -> None:
    # The figure's own canvas: pyplot would look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(panels), 4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    row = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    num_points = min(map(len, panels.values()))
    for axes, (title, points) in zip(row, panels.items(), strict=True):
        axes.scatter(points[:num_points, 0], points[:num_points, 1], s=4, linewidths=0)
        axes.set(title=title, aspect="equal")
    canvas.print_png(str(path))
