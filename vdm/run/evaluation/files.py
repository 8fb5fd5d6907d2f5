"""The files of an evaluation: evaluation.json, and the columns of every example.

The top level of evaluation.json has the keys of the headline, `results` is the list of all results;
the first versions wrote only a headline.
"""

import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vdm.choices import unknown
from vdm.run.errors import UserError
from vdm.run.evaluation.record import (
    TERMS,
    Evaluation,
    OdeResult,
    Profile,
    Result,
    Taken,
    VlbResult,
)
from vdm.run.system import document
from vdm.run.system.document import Place
from vdm.run.system.files import read_json, replacing, write_json

RESULT_FILE = "evaluation.json"
Columns = dict[str, np.ndarray]  # of every example, by name
# The errors of numpy and zipfile for a file of another form, or with a changed byte.
DAMAGE = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


def examples_file(split: str) -> str:
    """Return the name of the file with the numbers of every example of a split."""
    return f"evaluation_{split}.npz"


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation in the form of evaluation.json."""
    results = [_plain(result) for result in evaluation.results]
    taken = document.plain(evaluation.taken)
    return {**_plain(evaluation.headline), **taken, "results": results}


def from_json(value: object, path: pathlib.Path) -> Evaluation:
    """Return the evaluation that a document holds; raises UserError for one of another form.

    The message names `path`.
    """
    place = Place(path)
    if not isinstance(value, dict):
        raise place.wrong("an object", value)
    first, inner = _result(value, place), place.at("results")
    found = value.get("results", [])
    if not isinstance(found, list):
        raise inner.wrong("a list", found)
    results = tuple(_result(one, inner.item(i)) for i, one in enumerate(found))
    return Evaluation(first, results or (first,), document.read(Taken, value, place))


def read(workdir: pathlib.Path) -> Evaluation | None:
    """Return the evaluation in a workdir, None where there is none.

    Raises UserError for a file that is damaged or of another form.
    """
    path = workdir / RESULT_FILE
    return from_json(read_json(path), path) if path.exists() else None


def write(workdir: pathlib.Path, evaluation: Evaluation, kept: Mapping[str, Columns]) -> None:
    """Write an evaluation, and the kept columns of the examples of each split."""
    for split, columns in kept.items():
        with replacing(workdir / examples_file(split)) as temporary:
            np.savez(temporary, **columns)  # type: ignore[arg-type]
    write_json(workdir / RESULT_FILE, to_json(evaluation))


def numbers(result: Result, parts: np.ndarray, error: np.ndarray | None = None) -> Columns:
    """Return the columns of every example for a result, in bits per dimension.

    `parts` [n, k] are the summands of the bound: the three terms, or the ODE's one number. Of the
    variational bound there is also the total, and the Monte Carlo error [n] if it is known.
    """
    found = dict(zip(columns(result), parts.T, strict=True))
    if isinstance(result, VlbResult):
        found[f"total_{_label(result)}"] = parts.sum(1)
    if error is not None:
        found[f"error_{_label(result)}"] = error
    return found


def numbers_of_paths(result: VlbResult, bpd: np.ndarray, looser: np.ndarray) -> Columns:
    """Return the columns of every example, [n], for the paths beside a result."""
    label = _label(result)
    return {f"paths_{label}": bpd, f"looser_{label}": looser}


def columns(result: Result) -> tuple[str, ...]:
    """Return the names of the columns of every example whose sum is the result's bound."""
    if isinstance(result, OdeResult):
        return (_label(result),)
    return tuple(f"{term}_{_label(result)}" for term in TERMS)


def _label(result: Result) -> str:
    if isinstance(result, OdeResult):
        return "_".join(filter(None, ("ode", result.dequantisation, str(result.num_samples))))
    chain = "" if result.chain is None else f"_{result.chain}_chain"
    return f"{result.num_steps}{chain}" + ("_clipped" if result.clip_denoised else "")


def of_examples(workdir: pathlib.Path, result: Result) -> np.ndarray | None:
    """Return the bound of every example that a result is the mean of, [n].

    None where they were not kept, are damaged or are of another evaluation.
    """
    try:
        path = workdir / examples_file(result.origin.split)
        # Opened here: of a damaged file np.load would leave it open.
        with path.open("rb") as file, np.load(file) as kept:
            values = [np.asarray(kept[name], np.float64) for name in columns(result)]
    except DAMAGE:
        return None
    n, mean = result.bpd.n, result.bpd.mean
    if any(value.shape != (n,) for value in values):
        return None
    total = np.sum(values, axis=0)
    return total if np.isclose(total.mean(), mean, rtol=1e-9, atol=1e-12) else None


class _Named(NamedTuple):
    bound: str


def _result(value: object, place: Place) -> Result:
    bound = document.read(_Named, value, place).bound
    known = (VlbResult.bound, OdeResult.bound)
    if bound not in known:
        raise UserError(f"{place.path}: {unknown(place.at('bound').key, bound, known)}")
    if bound == OdeResult.bound:
        return document.read(OdeResult, value, place)
    result = document.read(VlbResult, value, place)
    if result.profile is not None:
        _check(result.profile, place.at("profile"))
    return result


def _check(profile: Profile, place: Place) -> None:
    """Raise UserError unless there is a mean for each interval, or for each edge."""
    edges = len(profile.log_snr)
    if edges < 2:
        raise place.at("log_snr").wrong("at least two edges", profile.log_snr)
    for name, length in (("error", edges - 1), ("information", edges)):
        for part, values in getattr(profile, name)._asdict().items():
            if values is not None and len(values) != length:
                raise place.at(name).at(part).wrong(f"{length} numbers", values)


def _plain(result: Result) -> dict[str, Any]:
    return {"bound": result.bound, **document.plain(result)}
