"""Evaluation: one exact pass over a split, in bits per dimension, with its standard error.

Every example gets the same number of noise levels, spread evenly with an offset of its
own under a law of λ, and all of its noise from a key made of the seed and its position
among the examples that are evaluated: the result depends on neither the batch size nor the
number of devices.
"""

import functools
import math
import pathlib
import time
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from vdm import laws
from vdm.losses import bits_per_dim
from vdm.run import data, mesh as meshes
from vdm.run.config import EvaluateConfig, fields, parse
from vdm.run.config.rules import split_words
from vdm.run.data.dataset import Dataset, ids_checksum, settle
from vdm.run.evaluation import bound, ode as flow, profile
from vdm.run.evaluation.bound import TERMS
from vdm.run.system import processes
from vdm.run.system.files import check_writable, replacing, write_json
from vdm.run.trained import Trained
from vdm.run.training import checks
from vdm.run.training.objective import for_evaluation
from vdm.run.workdir import sessions

RESULT_FILE = "evaluation.json"


def evaluate(trained: Trained, split: str, settings: EvaluateConfig, workdir: pathlib.Path) -> dict:
    """Return and write the evaluation of a split: bpd with its terms, standard error and n.

    "results" holds one record for every bound that was asked for. The variational bound is
    measured at every T, on the split and on an equally large subset of the train split, and
    with clipped x̂ besides if asked for; the ODE's with every dequantisation and number of
    draws, on the split. The record itself is that of the split by the bound named first, at
    the largest T or the most draws, with the seconds that all of it took and what it was computed
    with. It replaces the record of an earlier evaluation; the numbers for each example are kept in
    evaluation_<split>.npz. Raises UserError for an unknown split or bound, settings that do not go
    with the data, a folder that cannot be written to or a result that is not finite.
    """
    began = time.perf_counter()
    fields.check(settings, "evaluate.")
    names = split_words(settings.bound)
    for_evaluation(settings.law, trained.law)
    processes.first_alone(functools.partial(check_writable, workdir))
    where = trained.config.data.in_memory
    test = data.load(trained.config.data, split)
    subset = _subset(data.load(trained.config.data, "train"), len(test))
    checks.check_data(trained.model, trained.shape, trained.condition, test)
    _check(trained, test, settings, names)
    results: list[dict[str, Any]] = []
    kept: dict[str, np.ndarray] = {}
    for stored in [test] if split == "train" or "vlb" not in names else [test, subset]:
        dataset = settle(stored, where)  # it is read for every bound, and for its checksum
        common = {**_common(trained, dataset, settings), "ids_checksum": ids_checksum(dataset)}
        for name in names if stored is test else ["vlb"]:
            measure = _vlb if name == "vlb" else _ode
            records, of_examples = measure(trained, dataset, settings)
            results += [{**record, **common} for record in records]
            if stored is test:
                kept |= of_examples
            taken = {"seconds": time.perf_counter() - began, **sessions.made_with(trained.mesh)}
            record = {**_headline(results), **taken, "results": results}
            # After each of them: what comes next may take hours and fail.
            processes.first_alone(functools.partial(_write, record, kept, split, workdir))
    return record


def _write(
    record: dict[str, Any], kept: dict[str, np.ndarray], split: str, workdir: pathlib.Path
) -> None:
    with replacing(workdir / f"evaluation_{split}.npz") as temporary:
        np.savez(temporary, **kept)  # type: ignore[arg-type]
    write_json(workdir / RESULT_FILE, record)


Measured = tuple[list[dict[str, Any]], dict[str, np.ndarray]]


def _vlb(
    trained: Trained,
    dataset: Dataset,
    settings: EvaluateConfig,
) -> Measured:
    """Return a record for every T, plain and clipped, and the terms of every example."""
    records: list[dict[str, Any]] = []
    kept: dict[str, np.ndarray] = {}
    along = _along_the_schedule(trained)
    for clip in (False, True) if settings.clip_denoised else (False,):
        fn = bound.row_fn(trained, settings, clip_denoised=clip)
        measured = {
            num_steps: bound.measure(fn, trained, dataset, settings, num_steps)
            for num_steps in parse.parse_num_steps(settings.num_steps)
        }
        curve = None
        if None in measured:
            curve = profile.profile(
                measured[None].terms[..., TERMS.index("diffusion")],
                measured[None].log_snr,
                log_snr_max=float(along[0]),
                log_snr_min=float(along[-1]),
            )
        for num_steps, (terms, _) in measured.items():
            means = terms.mean(1)
            record = _vlb_record(means, trained, settings, num_steps)
            if clip:
                record["clip_denoised"] = True
            if curve is not None and num_steps is None:
                record |= _information(curve, trained)
            if curve is not None and num_steps is not None and _is_linear(along):
                record["diffusion_by_steps_law"] = profile.predicted_steps(curve, num_steps)
            records.append(record)
            label = ("inf" if num_steps is None else str(num_steps)) + ("_clipped" if clip else "")
            kept |= {f"{name}_{label}": means[:, i] for i, name in enumerate(TERMS)}
    return records, kept


def _ode(
    trained: Trained,
    dataset: Dataset,
    settings: EvaluateConfig,
) -> Measured:
    """Return a record for every dequantisation and number of draws, and each example's bound."""
    records: list[dict[str, Any]] = []
    kept: dict[str, np.ndarray] = {}
    for dequantisation in _dequantisations(trained, settings):
        measured = flow.measure(trained, dataset, settings, dequantisation)
        error = bits_per_dim(measured.standard_error, dataset.num_dims)
        for num_samples in parse.parse_counts(settings.num_samples):
            bpd = flow.bound(measured, num_samples, dataset.num_dims)
            record: dict[str, Any] = {
                "bpd": _mean(bpd),
                "bound": "ode",
                "dequantisation": dequantisation,
                "num_samples": num_samples,
                "divergence": settings.divergence,
                "nfe": {"mean": float(measured.nfe.mean()), "max": float(measured.most.max())},
            }
            if settings.divergence == "hutchinson":
                record["num_probes"] = settings.num_probes
            if settings.divergence == "hutchinson" and settings.num_probes > 1:
                # Of the mean over examples; it is a part of the standard error of bpd.
                record["probes_sem"] = float(np.sqrt(np.sum(error**2)) / len(error))
            steps = "tolerance" if settings.ode_steps == 0 else "ode_steps"
            record[steps] = getattr(settings, steps)
            records.append(record)
            kept["_".join(["ode", *filter(None, [dequantisation]), str(num_samples)])] = bpd
    return records, kept


def _check(
    trained: Trained, test: Dataset, settings: EvaluateConfig, names: Collection[str]
) -> None:
    """Raise UserError for what the settings ask of the data and cannot be had."""
    checks.check_clip(trained.model, settings.clip_denoised)
    if "ode" in names:
        for dequantisation in _dequantisations(trained, settings):
            flow.check(trained, test, settings, dequantisation)


def _dequantisations(trained: Trained, settings: EvaluateConfig) -> list[str | None]:
    if trained.model.likelihood.levels is None:
        return [None]
    return list(split_words(settings.dequantisation))


def _headline(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the record of the first split and bound: plain, at the largest T or most draws."""
    first = results[0]
    same = ("split", "bound", "dequantisation", "clip_denoised")
    fitting = [r for r in results if all(r.get(key) == first.get(key) for key in same)]
    size = "num_steps" if first["bound"] == "vlb" else "num_samples"
    return max(fitting, key=lambda record: float(record[size]))


def _information(curve: dict[str, Any], trained: Trained) -> dict[str, Any]:
    found: dict[str, Any] = {"profile": curve}
    levels = trained.model.likelihood.levels
    if levels is not None:
        found["i_mmse"] = profile.i_mmse(curve, levels=levels)
    return found


def _along_the_schedule(trained: Trained) -> np.ndarray:
    """Return λ at even times from 0 to 1."""
    along = jax.jit(
        lambda params, t: trained.model.log_snr(params)(t),
        out_shardings=meshes.whole(trained.mesh),
    )
    return np.asarray(along(trained.params, np.linspace(0.0, 1.0, 17)), np.float64)


def _is_linear(log_snrs: np.ndarray) -> bool:
    even = np.linspace(log_snrs[0], log_snrs[-1], len(log_snrs))
    return bool(np.allclose(log_snrs, even, rtol=0.0, atol=1e-4 * (log_snrs[0] - log_snrs[-1])))


def _subset(dataset: Dataset, n: int) -> Dataset:
    """Evenly spaced examples, so that the subset is the same in every run."""
    index = np.linspace(0, len(dataset) - 1, min(n, len(dataset))).round().astype(int)
    return dataset.subset(index)


def _vlb_record(
    terms: np.ndarray, trained: Trained, settings: EvaluateConfig, num_steps: int | None
) -> dict[str, Any]:
    law_name = laws.name_of(for_evaluation(settings.law, trained.law))
    return {
        "bpd": _mean(terms.sum(1)),
        "terms": {name: _mean(terms[:, i]) for i, name in enumerate(TERMS)},
        "bound": "vlb",
        "num_steps": "inf" if num_steps is None else num_steps,
        "levels_per_example": settings.levels_per_example,
        "law": law_name if num_steps is None else "schedule",
    }


def _common(trained: Trained, dataset: Dataset, settings: EvaluateConfig) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "dataset_version": dataset.version,
        "split": dataset.split,
        "num_examples": len(dataset),
        "num_dims": dataset.num_dims,
        "params": trained.kind,
        "step": trained.step,
        "seed": settings.seed,
    }


def _mean(values: np.ndarray) -> dict[str, Any]:
    # Examples are independent draws, each with its own noise: their spread holds both the
    # variance between examples and that of the Monte Carlo estimate.
    n = len(values)
    sem = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return {"mean": float(values.mean()), "sem": sem, "n": n}
