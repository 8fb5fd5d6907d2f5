"""Whether posteriors on a grid are calibrated, for examples whose condition is known.

`vdm infer` says so where its file holds the condition of every example: how the true values rank
among draws of their posteriors, and how often they lie in the central credible intervals.
"""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vdm.run import shared
from vdm.run.system.files import replacing

if TYPE_CHECKING:  # it takes long to import, and not every command needs it
    from vdm.inference.calibration import Coverage

NUM_DRAWS = 199  # of each posterior
LEAST = 20  # examples: fewer say nothing
LEVELS = np.linspace(0.05, 0.95, 19)
SHOWN = (0.5, 0.9)  # levels that are printed
MOST_BINS = 10  # in the picture


class Calibration(NamedTuple):
    """The parameters' names, ranks of the true values [n, c], p-values [c], and the coverage."""

    names: tuple[str, ...]
    ranks: np.ndarray
    p_value: np.ndarray
    coverage: "Coverage"


def inside(axes: Sequence[np.ndarray], theta: np.ndarray) -> np.ndarray:
    """Return whether each θ [n, c] is within the cells of the grid: no posterior knows others.

    They reach half a step beyond the first and the last point, as in `vdm.inference.grid_draws`.
    """
    low, high = np.transpose([(1.5 * a[0] - 0.5 * a[1], 1.5 * a[-1] - 0.5 * a[-2]) for a in axes])
    return np.all((low <= theta) & (theta <= high), axis=1)


def calibrated(
    names: tuple[str, ...],
    axes: Sequence[np.ndarray],
    weight: np.ndarray,
    theta: np.ndarray,
    seed: int,
) -> Calibration:
    """Return how the true θ [n, c] stand in posteriors with weights [n, m] of a grid's points.

    The points are those of a mesh of the axes, in the order of its rows. There are at least `LEAST`
    θ. Of two parameters each has the posterior of itself alone.
    """
    import jax

    from vdm import inference

    # Not a key of the bound's noise.
    key, ranks = jax.random.fold_in(jax.random.key(np.uint32(seed)), 2**32 - 1), []
    table = weight.reshape(len(weight), *(len(axis) for axis in axes))
    for i, axis in enumerate(axes):
        alone = table.sum(axis=tuple(j for j in range(1, table.ndim) if j != i + 1))
        # From its first point: in float32 a fine grid far from zero would have equal points.
        drawn = inference.grid_draws(jax.random.fold_in(key, i), alone, axis - axis[0], NUM_DRAWS)
        ranks.append(np.asarray(inference.ranks(drawn, theta[:, i : i + 1] - axis[0])))
    found = np.concatenate(ranks, axis=1)
    return Calibration(
        names,
        found,
        np.asarray(inference.uniformity(found, NUM_DRAWS)),
        inference.coverage(found, NUM_DRAWS, LEVELS),
    )


def print_calibration(found: Calibration, num_known: int) -> None:
    """Print a line for each parameter, and how many known θ were within the grid."""
    lines = []
    for i, name in enumerate(found.names):
        held = []
        for level in SHOWN:
            at = int(np.argmin(np.abs(LEVELS - level)))
            share, error = found.coverage.share[at, i], found.coverage.standard_error[at]
            held.append(f"{level:.0%} hold {share:.0%} ± {error:.0%}")
        lines.append((name, f"{', '.join(held)}; uniform ranks: p = {found.p_value[i]:.2g}"))
    within = "" if len(found.ranks) == num_known else f" of {num_known} within the grid"
    title = f"calibration: {len(found.ranks)} known θ{within}, if drawn evenly over its cells"
    shared.print_lines(title, lines)


def draw(path: pathlib.Path, found: Calibration) -> None:
    """Draw, for each parameter, how many θ have each rank and how many each interval holds.

    Grey is where 95 % of the counts and shares of calibrated posteriors lie.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from scipy.stats import binom

    size, num = found.ranks.shape
    figure = Figure(figsize=(6.4, 2.6 * num), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    bins = min(MOST_BINS, size // 10)
    low, high = binom.interval(0.95, size, 1 / bins)
    nominal = np.asarray(found.coverage.nominal)
    ends = np.stack(binom.interval(0.95, size, nominal)) / size
    for i, (left, right) in enumerate(figure.subplots(num, 2, squeeze=False)):
        left.axhspan(low, high, color="0.85")
        left.hist(found.ranks[:, i], bins=np.linspace(0, NUM_DRAWS + 1, bins + 1), rwidth=0.9)
        left.set(xlabel=f"rank of {found.names[i]} among {NUM_DRAWS} draws", ylabel="examples")
        right.fill_between(LEVELS, *ends, color="0.85", lw=0)
        right.plot(LEVELS, found.coverage.share[:, i], marker=".", lw=1)
        right.set(xlabel="credible interval", ylabel="share that it holds")
        right.set(xlim=(0, 1), ylim=(0, 1))
    with replacing(path) as temporary:
        canvas.print_png(str(temporary))
