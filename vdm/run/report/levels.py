"""Figures over λ and over T: the error's profile, the schedule, the law of λ, the cost of steps."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from vdm.run.evaluation.record import Estimates, Profile, VlbResult
from vdm.run.report import svg
from vdm.run.report.layout import Figure
from vdm.run.report.svg import MUTED, SERIES

LAMBDA = "λ = log SNR (noise on the left, data on the right)"


class Curve(NamedTuple):
    """A named line with its standard errors, if it has any."""

    name: str
    x: np.ndarray
    y: np.ndarray
    error: np.ndarray | None = None


def profile(named: Sequence[tuple[str, Profile]]) -> tuple[Figure, Figure]:
    """Return the error of ε̂ and the running information over λ, of named profiles."""
    errors, information = [], []
    for name, found in named:
        edges = np.asarray(found.log_snr)
        middle = 0.5 * (edges[1:] + edges[:-1])
        errors.append(Curve(name, middle, *_mean_and_sem(found.error)))
        information.append(Curve(name, edges, *_mean_and_sem(found.information)))
    return (
        Figure(
            svg.draw(
                "profile-error",
                "Error of the denoiser over λ",
                lambda axes: _paint(axes, errors, LAMBDA, "‖ε − ε̂‖² per dimension", low=0.0),
            ),
            "The error of the predicted noise at each noise level, in 16 intervals of λ, ± one "
            "standard error. It is small on the left, where z is nearly all noise; 1 is the "
            "error of predicting zero.",
        ),
        Figure(
            svg.draw(
                "profile-information",
                "Running information over λ",
                lambda axes: _paint(axes, information, LAMBDA, "bits per dimension", low=None),
            ),
            "The information gained from noise to data. Where the curve is steep, the structure "
            "of the data is determined.",
        ),
    )


def placed(profile: Profile, chains: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Return the error of ε̂ over λ with the noise levels of named chains below it."""
    edges = np.asarray(profile.log_snr)
    curve = Curve("error", 0.5 * (edges[1:] + edges[:-1]), *_mean_and_sem(profile.error))
    apart = 0.08 * curve.y.max()

    def paint(axes: Axes) -> None:
        _paint(axes, [curve], LAMBDA, "‖ε − ε̂‖² per dimension")
        for i, (name, log_snrs) in enumerate(chains, start=1):
            below = np.full(len(log_snrs), -i * apart)
            axes.plot(log_snrs, below, color=SERIES[i], linestyle="none", marker="|", label=name)
        axes.set_ylim(bottom=-(len(chains) + 1) * apart)
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if value >= 0 else "")
        )
        axes.legend()

    return Figure(
        svg.draw("placed", "Placed noise levels of the chains over the error", paint),
        "The noise levels of the run’s chains of few steps, below the error that they were placed "
        "by. Steps are short where a step costs much.",
    )


def schedule(curves: Sequence[Curve], *, learned: bool) -> Figure:
    """Return λ(t) of named schedules against the line between the first one's ends."""
    first = curves[0]

    def paint(axes: Axes) -> None:
        axes.plot(
            [0.0, 1.0],
            [first.y[0], first.y[-1]],
            color=MUTED,
            linewidth=1,
            linestyle=(0, (4, 3)),
            label="straight line",
        )
        _paint(axes, curves, "time t (data at 0, noise at 1)", "λ = log SNR", legend=True)

    what = "The learned schedule" if learned else "The schedule"
    return Figure(
        svg.draw("schedule", "λ over time", paint),
        f"{what}, λ(t), with a straight line between the same ends (dashed).",
    )


def law(curves: Sequence[Curve]) -> Figure:
    """Return the densities that training draws λ from against the even one of the first."""
    first = curves[0]

    def paint(axes: Axes) -> None:
        even = 1.0 / (first.x[-1] - first.x[0])
        axes.axhline(even, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="even")
        _paint(axes, curves, LAMBDA, "density p(λ)", legend=True)
        axes.set_ylim(0.0, 1.25 * max(even, *(curve.y.max() for curve in curves)))

    return Figure(
        svg.draw("law", "Density of the noise levels in training", paint),
        "The density of the noise levels in training, with an even one (dashed).",
    )


def steps(sweeps: Sequence[tuple[str, Sequence[VlbResult]]]) -> Figure:
    """Return the bound against T of named sweeps; the limit T = ∞ is a dashed line.

    A limit that two sweeps share is drawn once.
    """

    def paint(axes: Axes) -> None:
        ticks: set[int] = set()
        labelled = False
        limits: set[float] = set()
        for i, (name, sweep) in enumerate(sweeps):
            finite = sorted((r for r in sweep if not r.continuous), key=lambda r: r.size)
            where = [int(r.size) for r in finite]
            ticks |= set(where)
            axes.errorbar(
                where,
                [r.bpd.mean for r in finite],
                yerr=[r.bpd.sem or 0.0 for r in finite],
                color=SERIES[i],
                marker="o",
                markersize=4,
                capsize=3,
                label=svg.in_legend(name),
            )
            law = [(r.size, r.by_steps_law) for r in finite if r.by_steps_law is not None]
            if law:
                axes.plot(
                    *zip(*law, strict=True),
                    color=MUTED,
                    marker="x",
                    linestyle="none",
                    label=None if labelled else "by the 1/T law",
                )
                labelled = True
            for r in sweep:
                if r.continuous and r.bpd.mean not in limits:
                    limits.add(r.bpd.mean)
                    axes.axhline(r.bpd.mean, color=SERIES[i], linewidth=1, linestyle=(0, (4, 3)))
        axes.set(xscale="log", xlabel="number of steps T", ylabel="bits per dimension")
        axes.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.legend()

    law = any(r.by_steps_law is not None for _, sweep in sweeps for r in sweep)
    crosses = " Crosses: what the 1/T law predicts from T = ∞ alone." if law else ""
    return Figure(
        svg.draw("steps", "Bound against the number of steps", paint),
        f"What a finite number of steps costs, ± one standard error; dashed: T = ∞.{crosses}",
    )


def distances(curves: Sequence[Curve], unit: str) -> Figure:
    """Return the share of examples that are nearer to the training set than a distance."""

    def paint(axes: Axes) -> None:
        for i, curve in enumerate(curves):
            colour = MUTED if i == len(curves) - 1 else SERIES[i]
            axes.step(curve.x, curve.y, where="post", color=colour, label=svg.in_legend(curve.name))
        axes.set(
            xlabel=f"distance to the nearest training example ({unit})",
            ylabel="share",
            ylim=(0, 1.02),
        )
        axes.legend()

    return Figure(
        svg.draw("distances", "Distances to the nearest training examples", paint),
        "The share of samples and of held-out examples closer to the training set than a given "
        "distance. If a model repeats its training data, its curve is far to the left.",
    )


def scatter(panels: Sequence[tuple[str, np.ndarray]]) -> tuple[Figure, ...]:
    """Return a scatter of points for each name, over one range."""
    every = np.concatenate([points for _, points in panels])
    low, high = np.quantile(every, [0.002, 0.998], axis=0)
    room = 0.08 * (high - low)

    def figure(i: int, name: str, points: np.ndarray) -> Figure:
        def paint(axes: Axes) -> None:
            axes.scatter(points[:, 0], points[:, 1], s=5, linewidths=0, color=SERIES[0], alpha=0.7)
            axes.set_aspect("equal")
            axes.set(
                xlim=(low[0] - room[0], high[0] + room[0]),
                ylim=(low[1] - room[1], high[1] + room[1]),
            )

        return Figure(
            svg.draw(f"scatter-{i}", f"Scatter of {name}", paint), f"{len(points):,} {name}."
        )

    return tuple(figure(i, name, points) for i, (name, points) in enumerate(panels))


def _paint(
    axes: Axes,
    curves: Sequence[Curve],
    xlabel: str,
    ylabel: str,
    *,
    low: float | None = None,
    legend: bool = False,
) -> None:
    for i, (name, x, y, error) in enumerate(curves):
        axes.plot(x, y, color=SERIES[i], label=svg.in_legend(name))
        if error is not None:
            axes.fill_between(x, y - error, y + error, color=SERIES[i], alpha=0.25, linewidth=0)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if low is not None:
        axes.set_ylim(bottom=low)
    if legend or len(curves) > 1:
        axes.legend()


def _mean_and_sem(found: Estimates) -> tuple[np.ndarray, np.ndarray | None]:
    return np.asarray(found.mean), None if found.sem is None else np.asarray(found.sem)
