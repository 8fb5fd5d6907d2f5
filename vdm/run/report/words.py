"""What a record says, in words and figures that people read."""

import math
import pathlib
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from vdm.run.report.read import Run
from vdm.run.workdir import sessions

T = TypeVar("T")
MINUS = "−"
MIN_PLACES, MAX_PLACES = 3, 6
BOUND_KEYS = ("bound", "num_steps", "clip_denoised", "dequantisation", "num_samples")


def number(value: float, places: int = 3) -> str:
    """Return a number with a true minus sign, which zero has not."""
    return f"{value:z.{places}f}".replace("-", MINUS)


def with_error(value: Mapping[str, Any]) -> str:
    """Return mean ± standard error, with two figures of the error; of the mean alone without."""
    mean, sem = value["mean"], value["sem"]
    if sem is None:
        return number(mean, MIN_PLACES)
    exact = sem == 0.0
    places = MIN_PLACES if exact else 1 - math.floor(math.log10(sem))
    places = min(max(places, MIN_PLACES), MAX_PLACES)
    return f"{number(mean, places)} ± {number(sem, places)}"


def duration(seconds: float) -> str:
    """Return a time as people say it: 48 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 1:
        return "less than a second"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def measure(record: Mapping[str, Any]) -> str:
    """Return which bound a record holds, in short: what a row of a table is called."""
    if record["bound"] == "ode":
        words = (
            [f"{_dequantisation(record)} dequantisation"] if record.get("dequantisation") else []
        )
        return ", ".join(["ODE", *words, f"K = {record['num_samples']}"])
    steps = "∞" if record["num_steps"] == "inf" else f"{record['num_steps']:,}"
    clipped = ", x̂ clipped" if record.get("clip_denoised") else ""
    return f"variational, T = {steps}{clipped}"


def sentence(run: Run, record: Mapping[str, Any]) -> str:
    """Return what the headline figure is, in full."""
    kind = "negative log-density" if run.differential else "negative log-likelihood"
    kind += " given the class" if run.given_classes else ""
    where = "held-out" if record["split"] == "test" else "training"
    n = record["bpd"]["n"]
    of = f"Mean over {n:,} {where} examples of {record['dataset']}"
    if record["bound"] == "ode":
        return f"{of} of {_flow(run, record, kind)}"
    steps = (
        "in continuous time (T = ∞)"
        if record["num_steps"] == "inf"
        else f"with T = {record['num_steps']:,} steps"
    )
    clipped = ", with x̂ clipped to the data’s range" if record.get("clip_denoised") else ""
    levels = record.get("levels_per_example", 1)
    looks = f"{levels:,} noise level{'s' if levels > 1 else ''} for each example"
    return f"{of} of the variational bound {steps}{clipped}, an upper bound on the {kind}; {looks}."


def _flow(run: Run, record: Mapping[str, Any], kind: str) -> str:
    if not record.get("dequantisation"):
        return f"the {kind} under the probability-flow ODE."
    draws = record["num_samples"]
    return (
        f"an upper bound on the {kind} under the probability-flow ODE, by "
        f"{_dequantisation(record)} dequantisation with K = {draws:,} "
        f"draw{'s' if draws > 1 else ''} for each example."
    )


def _dequantisation(record: Mapping[str, Any]) -> str:
    return record["dequantisation"].replace("_", "-")


def params(record: Mapping[str, Any]) -> str:
    """Return which parameters were measured."""
    return "averaged (EMA)" if record.get("params", "ema") == "ema" else "last, not averaged (raw)"


def kind_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what two records have to agree in to be of the same bound of the same split."""
    return (record["split"], *(record.get(key) for key in BOUND_KEYS))


def hardware(found: Mapping[str, Any]) -> str:
    """Return what a session or an evaluation was computed on."""
    count, processes = found["num_devices"], found["num_processes"]
    name = found["device"] if found["platform"] != "cpu" else f"CPU ({found['processor']})"
    devices = f"{count} × {name}" if count > 1 else name
    host = "" if found["platform"] == "cpu" else f", host {found['processor']}"
    return devices + host + (f", {processes} processes" if processes > 1 else "")


def versions(found: Mapping[str, str]) -> str:
    """Return the versions of a session on one line."""
    names = ("vdm", "python", *sessions.PACKAGES)
    return ", ".join(f"{name} {found[name]}" for name in names if name in found)


def each_once(values: Iterable[T]) -> list[T]:
    """Return the values in order, each once."""
    return list(dict.fromkeys(values))


def quoted(path: pathlib.Path) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(path))


def plain(value: Any) -> str:
    """Return a value of the config as it would be written in a command."""
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(plain, value)) + ")"
    return str(value)
