"""The contents of a record in words and numbers for people."""

import math
import pathlib
import shlex
from collections.abc import Iterable, Mapping
from typing import TypeVar

from vdm.run.config.words import VALIDATION
from vdm.run.evaluation.record import OdeResult, Origin, Result, VlbResult
from vdm.run.report.read import Run
from vdm.run.workdir import sessions
from vdm.run.workdir.sessions import Hardware

T = TypeVar("T")
MINUS = "−"
MIN_PLACES, MAX_PLACES = 3, 6


def number(value: float, places: int = 3) -> str:
    """Return a number with a true minus sign, and zero without one."""
    return f"{value:z.{places}f}".replace("-", MINUS)


def with_error(mean: float, sem: float | None) -> str:
    """Return mean ± standard error, with two digits of the error; without an error the mean."""
    if sem is None:
        return number(mean, MIN_PLACES)
    exact = sem == 0.0
    places = MIN_PLACES if exact else 1 - math.floor(math.log10(sem))
    places = min(max(places, MIN_PLACES), MAX_PLACES)
    return f"{number(mean, places)} ± {number(sem, places)}"


def duration(seconds: float) -> str:
    """Return a time in words: 48 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 1:
        return "less than a second"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def measure(result: Result) -> str:
    """Return which bound a result holds, in short, as the name of a row."""
    if isinstance(result, OdeResult):
        words = [f"{_dequantisation(result)} dequantisation"] if result.dequantisation else []
        return ", ".join(["ODE", *words, f"K = {result.num_samples}"])
    return f"variational, T = {steps_of(result)}"


def steps(result: VlbResult) -> str:
    """Return T."""
    return "∞" if result.continuous else f"{int(result.size):,}"


def steps_of(result: VlbResult) -> str:
    """Return T, whether the steps are those of a fitted chain, and whether x̂ was clipped."""
    clipped = "x̂ clipped" if result.clip_denoised else ""
    return ", ".join(filter(None, (steps(result), result.chain_name, clipped)))


def sentence(run: Run, result: Result) -> str:
    """Return what the main number is, in full."""
    kind = "negative log-density" if run.differential else "negative log-likelihood"
    given = run.given(result)
    kind += f" given {' and '.join(given)}" if given else ""
    where = {"train": "training", VALIDATION: "validation"}.get(result.origin.split, "held-out")
    of = f"Mean over {result.bpd.n:,} {where} examples of {result.origin.dataset}"
    if isinstance(result, OdeResult):
        return f"{of} of {_ode(result, kind)}"
    how = "in continuous time (T = ∞)"
    if not result.continuous:
        how = f"with T = {steps(result)} steps"
        how += f" of a fitted chain ({result.chain_name})" if result.chain_name else ""
    clipped = ", with x̂ clipped to the data’s range" if result.clip_denoised else ""
    levels = result.levels_per_example
    draws = f"{levels:,} noise level{'s' if levels > 1 else ''} for each example"
    return f"{of} of the variational bound {how}{clipped}, an upper bound on the {kind}; {draws}."


def _ode(result: OdeResult, kind: str) -> str:
    if not result.dequantisation:
        return f"the {kind} under the probability-flow ODE."
    draws = result.num_samples
    return (
        f"an upper bound on the {kind} under the probability-flow ODE, by "
        f"{_dequantisation(result)} dequantisation with K = {draws:,} "
        f"draw{'s' if draws > 1 else ''} for each example."
    )


def _dequantisation(result: OdeResult) -> str:
    return (result.dequantisation or "").replace("_", "-")


def params(origin: Origin) -> str:
    """Return which parameters were measured."""
    return "averaged (EMA)" if origin.averaged else "last, not averaged (raw)"


def hardware(found: Hardware) -> str:
    """Return the hardware of a session or an evaluation."""
    count, processes = found.num_devices, found.num_processes
    name = found.device if found.platform != "cpu" else f"CPU ({found.processor})"
    devices = f"{count} × {name}" if count > 1 else name
    host = "" if found.platform == "cpu" else f", host {found.processor}"
    return devices + host + (f", {processes} processes" if processes > 1 else "")


def versions(found: Mapping[str, str]) -> str:
    """Return the versions of a session on one line."""
    names = ("vdm", "python", *sessions.PACKAGES)
    return ", ".join(f"{name} {found[name]}" for name in names if name in found)


def each_once(values: Iterable[T]) -> list[T]:
    """Return the values in order, each once."""
    return list(dict.fromkeys(values))


def quoted(path: pathlib.Path) -> str:
    """Return a path quoted for a shell."""
    return shlex.quote(str(path))


def plain(value: object) -> str:
    """Return a value of the config as it would be written in a command."""
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(plain, value)) + ")"
    return str(value)
