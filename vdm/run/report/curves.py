"""Figures of training: the bound and its terms, the gradient, the speed, the schedule's ends."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vdm.run.evaluation.record import TERMS
from vdm.run.report import svg
from vdm.run.report.layout import Figure
from vdm.run.report.read import VALIDATED, Run
from vdm.run.report.svg import SERIES

SETTLED = 0.25  # the share of the records at the start that must not set the scale


def column(run: Run, name: str) -> np.ndarray:
    """Return a metric over the records that have it."""
    return np.array([record[name] for record in run.metrics if name in record], float)


def seconds(run: Run) -> np.ndarray:
    """Return the seconds of training up to each record, without the time of drawing samples.

    A record's rate is that of the steps since the record before, whichever process took them.
    """
    steps = np.diff(column(run, "step"), prepend=0.0)
    return np.cumsum(steps / column(run, "steps_per_second"))


def limits(curves: Sequence[np.ndarray], also: Sequence[float] = ()) -> tuple[float, float, int]:
    """Return the range of y that shows what curves settle to, and how many points are above it."""
    settled = [curve[int(SETTLED * len(curve)) :] for curve in curves if len(curve)]
    shown = np.concatenate([*settled, np.asarray(also, float)])
    low, high = min(shown.min(), *(curve.min() for curve in curves if len(curve))), shown.max()
    every = np.concatenate(curves)
    high = max(high, every[every <= high + 0.5 * (high - low)].max())
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room, int((every > high + room).sum())


def loss(runs: Sequence[Run], by: str, lines: Sequence[float | None]) -> Figure:
    """Return the training bound of runs by "step" or "seconds", with a line at a bpd of each."""
    curves = [column(run, "loss") for run in runs]
    low, high, above = limits(curves, [line for line in lines if line is not None])

    def paint(axes: Axes) -> None:
        for i, (run, curve, line) in enumerate(zip(runs, curves, lines, strict=True)):
            along = seconds(run) if by == "seconds" else column(run, "step")
            axes.plot(
                along, curve, color=SERIES[i], label=svg.in_legend(run.name), marker=_marker(curve)
            )
            if line is not None:
                axes.axhline(line, color=SERIES[i], linewidth=1, linestyle=(0, (4, 3)))
        axes.set(ylim=(low, high), xlabel=by, ylabel="bits per dimension")
        _thousands(axes)
        if len(runs) > 1:
            axes.legend()

    where = " The dashed line is the evaluated bound." if any(x is not None for x in lines) else ""
    cut = f" {above} of {sum(map(len, curves))} records lie above the axis limit." if above else ""
    what = "The bound on the training batches, averaged between records"
    if by == "seconds":
        what = "The same by seconds of training, compilation included"
    svg_ = svg.draw(f"loss-{by}", f"Training bound by {by}", paint)
    return Figure(svg_, f"{what}.{where}{cut}")


def terms(run: Run) -> Figure:
    """Return the three terms of the training bound by step."""
    curves = {name: column(run, name) for name in TERMS}
    positive = all(curve.min() > 0 for curve in curves.values())

    def paint(axes: Axes) -> None:
        for i, (name, curve) in enumerate(curves.items()):
            axes.plot(
                column(run, "step"), curve, color=SERIES[i], label=name, marker=_marker(curve)
            )
        axes.set(xlabel="step", ylabel="bits per dimension")
        _thousands(axes)
        if positive:
            axes.set_yscale("log")
            plain_logarithms(axes)
        axes.legend()

    scale = " on a logarithmic scale" if positive else ""
    figure = svg.draw("terms", "Terms of the training bound by step", paint)
    return Figure(
        figure,
        f"The three terms of the bound{scale}. Prior and reconstruction are the price of the "
        "schedule’s two ends.",
    )


def validation(run: Run) -> Figure | None:
    """Return the bound of the validation split by step; None for a run without one."""
    records = [record for record in run.metrics if all(name in record for name in VALIDATED)]
    if not records:
        return None
    steps = [record["step"] for record in records]
    names = ("averaged parameters", "last parameters")
    found = {
        n: np.array([r[key] for r in records]) for n, key in zip(names, VALIDATED, strict=True)
    }
    low, high, above = limits([*found.values()])
    best = min(records, key=lambda record: record[VALIDATED[0]])

    def paint(axes: Axes) -> None:
        for i, (name, curve) in enumerate(found.items()):
            axes.plot(steps, curve, color=SERIES[i], label=name, marker=_marker(curve))
        axes.set(ylim=(low, high), xlabel="step", ylabel="bits per dimension")
        _thousands(axes)
        axes.legend()

    cut = f" {above} points lie above the axis limit." if above else ""
    figure = svg.draw("validation", "Bound of the validation split by step", paint)
    return Figure(
        figure,
        f"The bound of the {run.config.train.validation_examples:,} examples held out of training, "
        f"always with the same noise. It is least at step {best['step']:,.0f}, with "
        f"{best['validation']:.4f} by the averaged parameters.{cut}",
    )


def gradient_norm(run: Run) -> Figure:
    """Return the norm of the gradient by step."""
    return _single(
        run,
        "gradient_norm",
        "norm of the gradient",
        "The norm of the gradient before clipping. Spikes that stay high are a warning.",
    )


def speed(run: Run) -> Figure:
    """Return the steps per second by step."""
    return _single(
        run,
        "steps_per_second",
        "steps per second",
        "The speed of training; the first record includes compilation.",
        from_zero=True,
    )


def ends(run: Run) -> Figure | None:
    """Return the ends of the schedule by step; None where they are fixed."""
    top, bottom = column(run, "log_snr_max"), column(run, "log_snr_min")
    if not len(top) or (np.ptp(top) == 0 and np.ptp(bottom) == 0):
        return None

    def paint(axes: Axes) -> None:
        for i, (name, curve) in enumerate({"λ(0)": top, "λ(1)": bottom}.items()):
            axes.plot(
                column(run, "step"), curve, color=SERIES[i], label=name, marker=_marker(curve)
            )
        axes.set(xlabel="step", ylabel="λ = log SNR")
        _thousands(axes)
        axes.legend()

    figure = svg.draw("ends", "Ends of the schedule by step", paint)
    return Figure(figure, "The learned ends of the schedule.")


def plain_logarithms(axes: Axes) -> None:
    """Write the numbers of a logarithmic axis in full, since powers are not text."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _single(run: Run, name: str, label: str, caption: str, *, from_zero: bool = False) -> Figure:
    curve = column(run, name)
    low, high, above = limits([curve])

    def paint(axes: Axes) -> None:
        axes.plot(column(run, "step"), curve, color=SERIES[0], marker=_marker(curve))
        axes.set(xlabel="step", ylabel=label, ylim=(0.0 if from_zero else low, high))
        _thousands(axes)

    cut = f" {above} of {len(curve)} records lie above the axis limit." if above else ""
    return Figure(svg.draw(name, f"{label} by step", paint), caption + cut)


def _marker(curve: np.ndarray) -> str | None:
    """Mark the points of a curve that has only a few."""
    return "o" if len(curve) < 3 else None


def _thousands(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
