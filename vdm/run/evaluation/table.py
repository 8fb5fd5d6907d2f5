"""The results of an evaluation as tables on the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from vdm.run.evaluation.bound import TERMS

MIN_WIDTH = 100  # figures that are cut short are worse than lines that wrap


def show(results: list[dict[str, Any]]) -> None:
    """Print a table for each bound, and the profile of the first record that has one."""
    console = Console(width=max(Console().width, MIN_WIDTH))
    if bounds := [record for record in results if record["bound"] == "vlb"]:
        console.print(_bounds(bounds))
    if flows := [record for record in results if record["bound"] == "ode"]:
        console.print(_flows(flows))
    if profiled := [record for record in results if "profile" in record]:
        console.print(_profile(profiled[0]))


def _bounds(results: list[dict[str, Any]]) -> Table:
    """One row for every T; "T-law" is the bound that T = ∞ predicts for it to leading order."""
    table = Table(title="variational bound, bits per dimension (mean ± standard error)")
    predicted = any("diffusion_by_steps_law" in record for record in results)
    for heading in ("split", "n", "T", "bpd", *TERMS, *(["T-law"] if predicted else [])):
        table.add_column(heading, justify="left" if heading == "split" else "right", no_wrap=True)
    for record in results:
        terms = {name: record["terms"][name]["mean"] for name in TERMS}
        clipped = " clipped" if record.get("clip_denoised") else ""
        law = ""
        if "diffusion_by_steps_law" in record:
            law = (
                f"{sum(terms.values()) - terms['diffusion'] + record['diffusion_by_steps_law']:.4f}"
            )
        table.add_row(
            record["split"],
            str(record["bpd"]["n"]),
            f"{record['num_steps']}{clipped}",
            _mean(record["bpd"]),
            *(f"{value:.4f}" for value in terms.values()),
            *([law] if predicted else []),
        )
    return table


def _flows(results: list[dict[str, Any]]) -> Table:
    table = Table(title="probability-flow ODE, bits per dimension (mean ± standard error)")
    for heading in ("split", "n", "dequantisation", "K", "bpd", "evaluations a draw"):
        left = heading in ("split", "dequantisation")
        table.add_column(heading, justify="left" if left else "right")
    for record in results:
        table.add_row(
            record["split"],
            str(record["bpd"]["n"]),
            record["dequantisation"] or "none",
            str(record["num_samples"]),
            _mean(record["bpd"]),
            f"{record['nfe']['mean']:.0f} (at most {record['nfe']['max']:.0f})",
        )
    return table


def _profile(record: dict[str, Any]) -> Table:
    """One row for every interval of λ, from noise to data."""
    table = Table(
        title=f"profile over λ = log SNR, split {record['split']} (mean ± standard error)"
    )
    table.add_column("λ")
    table.add_column("‖ε − ε̂‖² per dimension", justify="right")
    table.add_column("bits per dimension learned so far", justify="right")
    edges, error, bits = (record["profile"][k] for k in ("log_snr", "error", "information"))
    for i in range(len(edges) - 1):
        table.add_row(f"{edges[i]:.2f} to {edges[i + 1]:.2f}", _of(error, i), _of(bits, i + 1))
    return table


def _mean(value: dict[str, Any]) -> str:
    sem = "" if value["sem"] is None else f" ± {value['sem']:.4f}"
    return f"{value['mean']:.4f}{sem}"


def _of(values: dict[str, Any], i: int) -> str:
    return _mean({"mean": values["mean"][i], "sem": values["sem"] and values["sem"][i]})
