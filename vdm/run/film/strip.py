"""A film as a picture: a row for each sample, a column for each noise level."""

import pathlib

import numpy as np

from vdm.run import figures, views
from vdm.run.errors import UserError
from vdm.run.film.frames import Film
from vdm.run.system.files import replacing

ROWS = 64  # a picture of more cannot be looked at
USUAL, USUAL_POINTS = 8, 500  # samples; points share one row
CELL = 1.1  # inches


def kind(path: pathlib.Path, shape: tuple[int, ...]) -> str:
    """Return how a film of examples of a shape is written: "array" or what a cell shows.

    A .npy holds any data; a cell of a .png shows what `vdm.run.views.form` says. Raises UserError
    for another ending or shape.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}: it exists already and is not a file")
    if path.suffix == ".npy":
        return "array"
    if path.suffix != ".png":
        raise UserError(f"a film strip is written as .png or .npy: got {path.name!r}")
    form = views.form(shape)
    if form is None:
        raise UserError(
            f"data of shape {list(shape)} cannot be drawn as a film strip: "
            "`vdm sample --trajectory --out=NAME.npy` writes an array"
        )
    return form


def number(how: str, num: int | None) -> int:
    """Return the number of samples of a film, by default as many as its picture shows well."""
    if num is None:
        return USUAL_POINTS if how == "points" else USUAL
    if how not in ("array", "points") and num > ROWS:
        raise UserError(
            f"a film strip has at most {ROWS} rows: got --num={num}, expected fewer or a .npy"
        )
    return num


def write(film: Film, path: pathlib.Path, *, levels: int | None) -> None:
    """Write a film as `kind` says; integers of so many `levels` have black as 0, white as most."""
    how = kind(path, film.x.shape[2:])
    with replacing(path) as temporary:
        if how == "array":
            np.save(temporary, film.x)
        else:
            _draw(film, how, levels, temporary)


def _draw(film: Film, how: str, levels: int | None, path: pathlib.Path) -> None:
    # The figure's own canvas: pyplot would look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # One scale for all cells, that of the samples: an x̂ at much noise may be far off.
    frames, ends = film.x, film.x[:, -1]
    shared = how in ("points", "lines")
    if not shared:
        seen = views.of(frames.reshape(-1, *frames.shape[2:]), views.ends(ends, levels))
        frames = seen.reshape(*frames.shape[:2], *seen.shape[1:])
    num_rows, num_columns = (1 if how == "points" else len(frames)), frames.shape[1]
    wide = CELL * (2.0 if shared else 1.0)
    figure = Figure(
        figsize=(wide * num_columns, (wide if how == "points" else CELL) * num_rows + 0.4),
        layout="constrained",
    )
    canvas = FigureCanvasAgg(figure)
    cells = figure.subplots(num_rows, num_columns, squeeze=False, sharex=shared, sharey=shared)
    for row, across in enumerate(cells):
        for column, axes in enumerate(across):
            if how == "points":
                points = frames[:, column]
                axes.scatter(points[:, 0], points[:, 1], s=2, linewidths=0)
                axes.set(xlim=_ends(ends[:, 0]), ylim=_ends(ends[:, 1]), aspect="equal")
            elif how == "lines":
                axes.plot(frames[row, column], linewidth=0.8)
                axes.set_ylim(*_ends(ends))
            else:
                page = figures.image(frames[row, column])
                axes.imshow(page, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if row == 0:
                last = column == num_columns - 1
                title = f"λ = {film.log_snrs[column]:.1f}"
                axes.set_title(f"sample, {title}" if last else title, fontsize=7)
    canvas.print_png(str(path))


def _ends(x: np.ndarray) -> tuple[float, float]:
    """Return the ends of an axis that shows all of x."""
    low, high = float(x.min()), float(x.max())
    margin = 0.1 * (high - low) or 1.0
    return low - margin, high + margin
