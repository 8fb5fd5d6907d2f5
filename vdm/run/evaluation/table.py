"""The results of an evaluation as tables on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from vdm.run.evaluation.record import (
    TERMS,
    Estimate,
    Estimates,
    OdeResult,
    Profile,
    Result,
    VlbResult,
)

MIN_WIDTH, WIDEST = 100, 1000  # truncated numbers are worse than wrapped lines


def show(results: Sequence[Result]) -> None:
    """Print a table for each bound, and the profile of the first result that has one."""
    console = Console(width=max(Console().width, MIN_WIDTH))
    if bounds := [result for result in results if isinstance(result, VlbResult)]:
        table = _bounds(bounds)
        needed = Console(width=WIDEST).measure(table).maximum
        Console(width=max(console.width, needed)).print(table)
    if odes := [result for result in results if isinstance(result, OdeResult)]:
        console.print(_odes(odes))
    if known := dict.fromkeys(r.precision for r in results if r.precision is not None):
        console.print(f"precision of float32: {' and '.join(known)}", highlight=False)
    profiled = [(r.profile, r.origin.what) for r in bounds if r.profile is not None]
    if profiled:
        console.print(_profile(*profiled[0]))


def _bounds(results: Sequence[VlbResult]) -> Table:
    """One row for every T.

    "T-law" is the bound that T = ∞ predicts for it to leading order. "K paths" is the importance
    bound of whole paths, and "looser" how far the VLB of the same paths is above it.
    """
    table = Table(title="variational bound, bits per dimension (mean ± standard error)")
    predicted = any(result.by_steps_law is not None for result in results)
    of_paths = [result.paths.num_paths for result in results if result.paths is not None]
    more = ["T-law"] * predicted + ([f"{of_paths[0]} paths", "looser"] if of_paths else [])
    for heading in ("split", "n", "T", "bpd", *TERMS, *more):
        table.add_column(heading, justify="left" if heading == "split" else "right", no_wrap=True)
    for result in results:
        law = "" if result.by_steps_law is None else f"{result.by_steps_law:.4f}"
        clipped = "clipped" if result.clip_denoised else ""
        beside = ["", ""] if result.paths is None else list(map(_of_mean, result.paths[1:]))
        table.add_row(
            result.origin.what,
            str(result.bpd.n),
            " ".join(filter(None, (str(result.num_steps), result.chain_name, clipped))),
            _mean(result.bpd.mean, result.bpd.sem),
            *(f"{term.mean:.4f}" for term in result.terms),
            *([law] if predicted else []),
            *(beside if of_paths else []),
        )
    return table


def _odes(results: Sequence[OdeResult]) -> Table:
    table = Table(title="probability-flow ODE, bits per dimension (mean ± standard error)")
    for heading in ("split", "n", "dequantisation", "K", "bpd", "evaluations per draw"):
        left = heading in ("split", "dequantisation")
        table.add_column(heading, justify="left" if left else "right")
    for result in results:
        table.add_row(
            result.origin.what,
            str(result.bpd.n),
            result.dequantisation or "none",
            str(result.num_samples),
            _mean(result.bpd.mean, result.bpd.sem),
            f"{result.nfe.mean:.0f} (at most {result.nfe.max:.0f})",
        )
    return table


def _profile(profile: Profile, split: str) -> Table:
    """One row for every interval of λ, from noise to data."""
    table = Table(title=f"profile over λ = log SNR, split {split} (mean ± standard error)")
    table.add_column("λ")
    table.add_column("‖ε − ε̂‖² per dimension", justify="right")
    table.add_column("running information, bits per dimension", justify="right")
    edges, error, bits = profile
    for i in range(len(edges) - 1):
        table.add_row(f"{edges[i]:.2f} to {edges[i + 1]:.2f}", _of(error, i), _of(bits, i + 1))
    return table


def _of_mean(found: Estimate) -> str:
    return _mean(found.mean, found.sem)


def _mean(mean: float, sem: float | None) -> str:
    return f"{mean:.4f}" + ("" if sem is None else f" ± {sem:.4f}")


def _of(values: Estimates, i: int) -> str:
    return _mean(values.mean[i], None if values.sem is None else values.sem[i])
