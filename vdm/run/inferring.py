"""The command `vdm infer`: what an example says of the condition that it comes from.

For every example of a file it takes the bound at the conditions of a grid, with the same noise for
all of them, and writes a row for each: −log p(x|θ) in nats, how far it is above the lowest, with
its error, and the posterior weight of the grid's point for a flat prior. A picture of the weights
stands beside the table. Where the file holds the condition of every example, another picture and a
few lines say whether the posteriors are calibrated (`vdm.run.calibrating`).
"""

import argparse
import csv
import math
import pathlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vdm.run import calibrating, shared
from vdm.run.config.rules import Number
from vdm.run.errors import UserError, as_user_error
from vdm.run.system.files import check_is_file, check_writable, replacing

if TYPE_CHECKING:  # it takes long to import, and not every command needs it
    from vdm.inference import Profile
    from vdm.run.trained import Trained

MOST_SHOWN = 12  # examples in the picture and in the tables
STEPS = (10, 50, None)  # numbers of steps for which the profile is shown
POINTS = Number(2, 10_000)  # of a grid along one parameter
SAMPLES = Number(16, 2**20)
NUM_SETS = 8
PER_CALL = 256  # evaluations of the network at a time


class Grid(NamedTuple):
    """The points of a grid, [m, parameters], the names and the values along each parameter."""

    points: np.ndarray
    names: tuple[str, ...]
    axes: tuple[np.ndarray, ...]


def infer(options: argparse.Namespace) -> int:
    """Take the profile of every example of a file, as the options ask; returns the exit code."""
    shared.check_num(SAMPLES, options.num_samples, "--num_samples")
    if options.num_samples % (2 * NUM_SETS):
        raise UserError(
            f"--num_samples must be a multiple of {2 * NUM_SETS}: got {options.num_samples}"
        )
    out = options.out or shared.folder(options.workdir) / "profile.csv"
    if out.suffix.lower() != ".csv":
        raise UserError(f"a profile is written as .csv, its picture beside it: got --out={out}")
    import jax

    from vdm.run import trained
    from vdm.run.data import whole
    from vdm.run.keys import data as key_data
    from vdm.run.scoring import given
    from vdm.run.training import checks

    run = trained.load(options.workdir, options.params)
    grid = read_grid(options.grid, run)
    found = whole.load(options.source).data
    given.check_type(run, found.examples.dtype, str(options.source))
    checks.check_data(run.model, run.shape, run.condition.without(), found)
    theta = known(found.take(np.arange(len(found))).vector, grid, options.source)
    picture, second = out.with_suffix(".png"), out.with_name(f"{out.stem}_calibration.png")
    for path in (out, picture, second):
        check_is_file(path)
    check_writable(out.parent)
    key_data(options.seed)  # an error now
    for line in beyond(grid, run):
        shared.say(f"vdm: {line}")
    # As the bounds of an evaluation are.
    with jax.default_matmul_precision(run.config.evaluate.precision):
        profile = of_examples(run, found.x, grid, options.num_samples, options.seed)
        write(out, grid, profile)
        draw(picture, grid, profile)
        _print(grid, profile)
        for line in coarse(grid, profile):
            shared.say(f"vdm: {line}")
        _print_dependence(run, found.x[:1], grid, options.num_samples, options.seed)
    if theta is None:
        shared.say(f"written to {out} and {picture}")
        return 0
    inside = calibrating.inside(grid.axes, theta)
    calibration = calibrating.calibrated(
        grid.names, grid.axes, weights(profile)[inside], theta[inside], options.seed
    )
    calibrating.print_calibration(calibration, len(theta))
    calibrating.draw(second, calibration)
    shared.say(f"written to {out}, {picture} and {second}")
    return 0


def known(theta: np.ndarray | None, grid: Grid, source: pathlib.Path) -> np.ndarray | None:
    """Return the conditions that a file holds, where there are enough of them for calibration.

    Raises UserError for vectors of another length than the run's.
    """
    if theta is None:
        return None
    if theta.shape[1] != len(grid.axes):
        raise UserError(
            f"{source}: cond must be {len(grid.axes)} numbers of each example, "
            f"{', '.join(grid.names)}: got {theta.shape[1]}"
        )
    num = int(calibrating.inside(grid.axes, theta).sum())
    if num >= calibrating.LEAST:
        return theta
    least = calibrating.LEAST
    shared.say(f"vdm: no calibration: {num} known θ are within the grid, and {least} are needed")
    return None


def read_grid(text: str, run: "Trained") -> Grid:
    """Return the grid that LOW:HIGH:NUM says, one for each number of the run's vector.

    Raises UserError for a run that is not conditioned on a vector of one or two numbers alone.
    """
    from vdm.run.data import asked

    condition = run.condition
    if condition.names != ("vector",) or len(condition.vector.mean) > 2 or condition.points:  # type: ignore[union-attr]  # by its names
        kinds = asked.kinds(condition) if condition.names else "nothing"
        kinds += ", of sets of points" * (condition.points is not None)
        raise UserError(
            "vdm infer is for a run that is conditioned on one vector of one or two numbers: this "
            f"one is conditioned on {kinds} (vdm.inference takes any condition)"
        )
    assert condition.vector is not None
    num = len(condition.vector.mean)
    names = condition.vector_names or tuple(f"cond_{i}" for i in range(num))
    parts = text.split(",")
    if len(parts) != num:
        raise UserError(
            f"--grid must be LOW:HIGH:NUM for each of {num} parameters, {', '.join(names)}, "
            f"separated by commas: got {text!r}"
        )
    axes = tuple(_axis(part, text) for part in parts)
    points = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    return Grid(points, tuple(names), axes)


def _axis(part: str, text: str) -> np.ndarray:
    words = part.split(":")
    try:
        low, high, num = float(words[0]), float(words[1]), int(words[2])
        if len(words) != 3:
            raise ValueError
    except (ValueError, IndexError) as error:
        raise UserError(f"--grid must be LOW:HIGH:NUM, such as 0.5:2:16: got {text!r}") from error
    shared.check_num(POINTS, num, "NUM of --grid")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"--grid must go from LOW up to HIGH, both finite: got {part!r}")
    return np.linspace(low, high, num)


def beyond(grid: Grid, run: "Trained") -> list[str]:
    """Return a line for each parameter whose grid leaves the conditions of training examples."""
    some = run.condition.some
    if some is None or some.vector is None:
        return []
    known = np.asarray(some.vector, np.float64)
    lines = []
    for i, (name, axis) in enumerate(zip(grid.names, grid.axes, strict=True)):
        low, high = known[:, i].min(), known[:, i].max()
        if axis[0] < low or axis[-1] > high:
            lines.append(
                f"the grid of {name} goes from {axis[0]:g} to {axis[-1]:g}, and {len(known)} "
                f"training examples have {low:.4g} to {high:.4g}: beyond them nothing was learned"
            )
    return lines


def coarse(grid: Grid, profile: "Profile") -> list[str]:
    """Return a line for each parameter whose posteriors are narrower than the grid shows."""
    _, std = moments(grid, weights(profile))
    lines = []
    for name, axis, usual in zip(grid.names, grid.axes, np.median(std, axis=0), strict=True):
        if usual < 0.5 * (axis[1] - axis[0]):
            lines.append(
                f"half of the posteriors of {name} are narrower than {usual:.2g}, and a step of "
                f"the grid is {axis[1] - axis[0]:.2g}: a finer grid would show them"
            )
    return lines


def of_examples(
    run: "Trained", x: np.ndarray, grid: Grid, num_samples: int, seed: int
) -> "Profile":
    """Return the profiles of all examples along the grid, with a bar."""
    import jax

    from vdm import inference
    from vdm.run.system.progress import bar

    conds, key = _given(run, grid), jax.random.key(np.uint32(seed))
    rows = []
    with bar("infer", len(x)) as advance, as_user_error("the profile"):
        for i, one in enumerate(x):
            found = inference.profile(
                run.model,
                run.params,
                one[None],
                conds,
                jax.random.fold_in(key, i),
                num_samples=num_samples,
                num_sets=NUM_SETS,
                batch_size=PER_CALL,
            )
            rows.append(jax.tree.map(np.asarray, found))
            advance(i + 1, f"{len(conds)} points of the grid")
    whole: Profile = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    if not np.isfinite(whole.mean).all():
        raise UserError(f"the bound is not finite at some points of the grid, at step {run.step}")
    return whole


def _given(run: "Trained", grid: Grid) -> np.ndarray:
    assert run.condition.vector is not None
    return run.condition.vector.applied(grid.points)


def weights(profile: "Profile") -> np.ndarray:
    """Return the posterior weights of the grid's points for a flat prior, [n, m]."""
    from vdm import inference

    return np.asarray(inference.posterior(profile), np.float64)


def moments(grid: Grid, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each parameter under weights [..., m]."""
    mean = weight @ grid.points
    square = weight @ grid.points**2
    return mean, np.sqrt(np.maximum(square - mean**2, 0.0))


def write(path: pathlib.Path, grid: Grid, profile: "Profile") -> None:
    """Write a row for every example and point of the grid, whole or not at all."""
    weight = weights(profile)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["index", *grid.names, "nats", "error", "excess", "excess_error", "weight"])
        columns = (profile.mean, profile.sem, profile.excess, profile.excess_sem, weight)
        for i in range(len(weight)):
            for j, point in enumerate(grid.points.tolist()):
                rows.writerow([i, *point, *(float(column[i, j]) for column in columns)])


def draw(path: pathlib.Path, grid: Grid, profile: "Profile") -> None:
    """Draw the posterior weights of the first examples: curves, or maps of two parameters."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    weight = weights(profile)[:MOST_SHOWN]
    across = min(4, len(weight))
    down = math.ceil(len(weight) / across)
    figure = Figure(figsize=(3.2 * across, 2.6 * down), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for i, (axes, one) in enumerate(zip(panels, weight, strict=False)):
        if len(grid.axes) == 1:
            axes.plot(grid.axes[0], one, marker=".", lw=1)
            axes.set(xlabel=grid.names[0], ylabel="posterior weight", ylim=(0, None))
        else:
            shape = tuple(len(axis) for axis in grid.axes)
            axes.pcolormesh(*grid.axes, one.reshape(shape).T, shading="nearest")
            axes.set(xlabel=grid.names[0], ylabel=grid.names[1])
        axes.set_title(f"example {i}", fontsize=9)
    for axes in panels[len(weight) :]:
        axes.set_axis_off()
    with replacing(path) as temporary:
        canvas.print_png(str(temporary))


def _print(grid: Grid, profile: "Profile") -> None:
    mean, std = moments(grid, weights(profile))
    lines = []
    for i in range(min(MOST_SHOWN, len(mean))):
        best = grid.points[int(np.argmin(profile.mean[i]))]
        said = [
            f"{name} {m:.4g} ± {s:.2g} (best {b:.4g})"
            for name, m, s, b in zip(grid.names, mean[i], std[i], best, strict=True)
        ]
        lines.append((f"example {i}", ", ".join(said)))
    if len(mean) > MOST_SHOWN:
        lines.append(("", f"and {len(mean) - MOST_SHOWN} more in the table"))
    shared.print_lines("posterior on the grid, flat prior: mean ± standard deviation", lines)


def _print_dependence(
    run: "Trained", x: np.ndarray, grid: Grid, num_samples: int, seed: int
) -> None:
    """Print the posterior of the first example by bounds of several numbers of steps."""
    import jax

    from vdm import inference

    key = jax.random.fold_in(jax.random.key(np.uint32(seed)), 0)
    found = inference.dependence(
        run.model,
        run.params,
        x,
        _given(run, grid),
        key,
        num_steps=STEPS,
        num_samples=num_samples,
        num_sets=NUM_SETS,
        batch_size=PER_CALL,
    )
    lines = []
    for name, excess in zip(found.bound, np.asarray(found.excess, np.float64), strict=True):
        weight = np.exp(-excess[0])
        mean, std = moments(grid, weight / weight.sum())
        said = [f"{n} {m:.4g} ± {s:.2g}" for n, m, s in zip(grid.names, mean, std, strict=True)]
        lines.append((name, ", ".join(said)))
    title = "example 0 by the bound at T steps: where these differ, a gap bends the posterior"
    shared.print_lines(title, lines)
