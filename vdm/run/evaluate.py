"""Evaluation: one exact pass over a split, in bits per dimension, with its standard error.

Every example gets the same number of noise levels, spread evenly with an offset of its
own under a law of λ, or every step of a fitted chain. All of its noise follows from the seed and
its position among the examples that are evaluated: the result depends on neither the batch size nor
the number of devices.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from vdm import laws
from vdm.model import Params
from vdm.run.config import EvaluateConfig, fields, parse
from vdm.run.config.rules import split_words
from vdm.run.data.dataset import Dataset, ids_checksum, ids_of, settle
from vdm.run.evaluation import all_steps, bound, files, ode, paths, profile, record, rows, units
from vdm.run.evaluation.record import (
    TERMS,
    Evaluation,
    Nfe,
    OdeResult,
    Origin,
    Paths,
    Result,
    Taken,
    Terms,
    VlbResult,
)
from vdm.run.evaluation.rows import RowFn
from vdm.run.run import Run, dataset as dataset_of
from vdm.run.system import processes
from vdm.run.system.files import check_writable
from vdm.run.system.progress import say
from vdm.run.training import checks
from vdm.run.training.objective import for_evaluation
from vdm.run.workdir import chains, sessions
from vdm.run.workdir.chains import Kept


def evaluate(
    trained: Run, split: str, settings: EvaluateConfig, workdir: pathlib.Path
) -> dict[str, Any]:
    """Return and write the evaluation of a split: bpd with its terms, standard error and n.

    These are the plain values of evaluation.json: `vdm.run.evaluation.files.to_json` of the result
    of `measure`, with the same errors.
    """
    return files.to_json(measure(trained, split, settings, workdir))


def measure(
    trained: Run, split: str, settings: EvaluateConfig, workdir: pathlib.Path
) -> Evaluation:
    """Return and write the evaluation of a split, with a result for every bound asked for.

    The variational bound is measured at every T, on the split and on an equally large subset of
    the train split, and also with clipped x̂ if asked for; that of the fitted chains in `workdir` as
    they were fitted; and beside each one of finite T its importance bound, if asked for. The ODE
    bound is measured with every dequantisation and number of draws, on the split. The headline is
    the result for the split by the bound named first, at the largest T or the most draws, and that
    of a chain only where there is no other. It replaces the record of an earlier evaluation; the
    numbers for each example, of the subset too, are kept in evaluation_<split>.npz. Raises
    UserError for an unknown split or bound, a chain that is not there, settings that do not fit the
    data, a folder that cannot be written to or a result that is not finite.
    """
    began = time.perf_counter()
    fields.check(settings, "evaluate.")
    names = split_words(settings.bound)
    for_evaluation(settings.law, trained.law)
    fitted = _fitted(trained, settings, workdir) if "vlb" in names else {}
    processes.first_alone(functools.partial(check_writable, workdir))
    where = trained.config.data.in_memory
    test = dataset_of(trained, split)
    subset = _subset(dataset_of(trained, "train"), len(test))
    _check(trained, test, settings, names)
    if test.taken:
        say(test.taken)
    # Of both splits: whole chains take long to compile.
    variational = functools.partial(
        _vlb,
        fitted=fitted,
        chain_fn=all_steps.row_fn(trained, settings.precision),
        path_fn=paths.row_fn(trained, settings.precision),
    )
    results: list[Result] = []
    kept: dict[str, files.Columns] = {}  # by split
    for stored in [test] if split == "train" or "vlb" not in names else [test, subset]:
        dataset = settle(stored, where)  # it is read for every bound, and for its checksum
        origin = _origin(trained, dataset, settings)
        columns = kept.setdefault(origin.split, ids_of(dataset))
        for name in names if stored is test else ["vlb"]:
            bounds = variational if name == "vlb" else _ode
            for result, numbers in bounds(trained, dataset, settings, origin):
                results.append(result)
                columns |= numbers
            made = sessions.made_with(trained.mesh)
            taken = Taken(time.perf_counter() - began, made.versions, made.hardware)
            evaluation = Evaluation(record.headline(results), tuple(results), taken)
            # After each bound: the next one may take hours and fail.
            write = functools.partial(files.write, workdir, evaluation, kept)
            processes.first_alone(write)
    return evaluation


def _vlb(
    trained: Run,
    dataset: Dataset,
    settings: EvaluateConfig,
    origin: Origin,
    *,
    fitted: Mapping[int, Kept],
    chain_fn: RowFn,
    path_fn: RowFn,
) -> list[tuple[Result, files.Columns]]:
    """Return a result for every T, plain and clipped, and for every fitted chain.

    Each comes with the numbers of every example. Those of chains are last, so that the headline is
    another one's where there is one.
    """
    found: list[tuple[Result, files.Columns]] = []
    along = _along_the_schedule(trained, settings.precision)
    law = laws.name_of(for_evaluation(settings.law, trained.law))
    levels = trained.model.likelihood.levels
    for clip in (False, True) if settings.clip_denoised else (False,):
        fn = bound.row_fn(trained, settings, clip_denoised=clip)
        measured = {
            num_steps: bound.measure(fn, trained, dataset, settings, num_steps)
            for num_steps in parse.parse_num_steps(settings.num_steps).plain
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
            result = VlbResult(
                bpd=record.estimate(means.sum(1)),
                terms=Terms(*map(record.estimate, means.T)),
                num_steps="inf" if num_steps is None else num_steps,
                levels_per_example=settings.levels_per_example,
                law=law if num_steps is None else "schedule",
                clip_denoised=clip,
                origin=origin,
                precision=settings.precision,
            )
            if curve is not None and num_steps is None:
                i_mmse = None if levels is None else profile.i_mmse(curve, levels=levels)
                result = dataclasses.replace(result, profile=curve, i_mmse=i_mmse)
            if curve is not None and num_steps is not None and _is_linear(along):
                predicted = profile.predicted_steps(curve, num_steps)
                result = dataclasses.replace(result, diffusion_by_steps_law=predicted)
            columns = files.numbers(result, means, bound.error(terms))
            if settings.num_paths and num_steps is not None:
                chain = paths.even(
                    trained, num_steps, clip_denoised=clip, precision=settings.precision
                )
                of_paths = paths.measure(path_fn, trained, dataset, settings, chain)
                result, columns = _beside(result, columns, of_paths, settings)
            found.append((result, columns))
    for num_steps, kept in fitted.items():
        terms = all_steps.measure(chain_fn, trained, dataset, settings, kept.chain)
        means = terms.mean(1)
        result = VlbResult(
            bpd=record.estimate(means.sum(1)),
            terms=Terms(*map(record.estimate, means.T)),
            num_steps=num_steps,
            levels_per_example=num_steps * terms.shape[1],
            clip_denoised=kept.chain.clip_denoised,
            origin=origin,
            chain=kept.variance,
            chain_checksum=kept.checksum.hex(),
            precision=settings.precision,
        )
        columns = files.numbers(result, means, bound.error(terms))
        if settings.num_paths:
            of_paths = paths.measure(path_fn, trained, dataset, settings, kept.chain)
            result, columns = _beside(result, columns, of_paths, settings)
        found.append((result, columns))
    return found


def _beside(
    result: VlbResult, columns: files.Columns, found: paths.OfExamples, settings: EvaluateConfig
) -> tuple[VlbResult, files.Columns]:
    """Return a result and its columns with the importance bound of whole paths."""
    means = Paths(settings.num_paths, record.estimate(found.bpd), record.estimate(found.looser))
    columns = columns | files.numbers_of_paths(result, *found)
    return dataclasses.replace(result, paths=means), columns


def _fitted(trained: Run, settings: EvaluateConfig, workdir: pathlib.Path) -> dict[int, Kept]:
    """Return the fitted chain of every T asked for, on the host; UserError where one is missing."""
    found: dict[int, Kept] = {}
    for num_steps in parse.parse_num_steps(settings.num_steps).chains:
        kept = chains.find(workdir, trained.params, num_steps)
        found[num_steps] = kept._replace(chain=jax.tree.map(np.asarray, kept.chain))
    return found


def _ode(
    trained: Run, dataset: Dataset, settings: EvaluateConfig, origin: Origin
) -> list[tuple[Result, files.Columns]]:
    """Return a result for every dequantisation and number of draws, with each example's bound."""
    found: list[tuple[Result, files.Columns]] = []
    probes = settings.num_probes if settings.divergence == "hutchinson" else None
    adaptive = settings.ode_steps == 0
    for dequantisation in _dequantisations(trained, settings):
        weights = ode.measure(trained, dataset, settings, dequantisation)
        error = units.in_bits(weights.standard_error, dataset.dims)
        sem = float(np.sqrt(np.sum(error**2)) / len(error))
        again = ode.again(trained, dataset, settings, dequantisation)
        for num_samples in parse.parse_counts(settings.num_samples):
            bpd = ode.bound(weights, num_samples, dataset.dims)
            few = len(again.nfe)
            moved = ode.bound(again, num_samples, dataset.dims[:few]) - bpd[:few]
            result = OdeResult(
                bpd=record.estimate(bpd),
                dequantisation=dequantisation,
                num_samples=num_samples,
                divergence=settings.divergence,
                nfe=Nfe(float(weights.nfe.mean()), float(weights.most.max())),
                num_probes=probes,
                probes_sem=sem if probes is not None and probes > 1 else None,
                tolerance=settings.tolerance if adaptive else None,
                ode_steps=None if adaptive else settings.ode_steps,
                moved=float(np.mean(np.abs(moved))),
                origin=origin,
                precision=ode.PRECISION,
            )
            if result.by_rounding:
                say(
                    f"rounding decides this answer: {len(moved)} examples move by "
                    f"{result.moved:.2g} bits per dimension, more than the standard error, where "
                    f"the parameters change by {ode.CHANGE:g} of their size. Train longer, or "
                    "take the variational bound"
                )
            found.append((result, files.numbers(result, bpd[:, None])))
    return found


def _check(trained: Run, test: Dataset, settings: EvaluateConfig, names: Collection[str]) -> None:
    """Raise UserError for settings that the data cannot satisfy."""
    checks.check_clip(trained.model, settings.clip_denoised)
    checks.check_unconditional(trained.model, settings.unconditional)
    if "ode" in names:
        for dequantisation in _dequantisations(trained, settings):
            ode.check(trained, test, settings, dequantisation)


def _dequantisations(trained: Run, settings: EvaluateConfig) -> list[str | None]:
    if trained.model.likelihood.levels is None:
        return [None]
    return list(split_words(settings.dequantisation))


def _along_the_schedule(trained: Run, precision: str) -> np.ndarray:
    """Return λ at even times from 0 to 1."""

    def along(params: Params, t: jax.Array) -> tuple[jax.Array]:
        return (trained.model.log_snr(params)(t),)

    fn = rows.compiled(along, trained.mesh, precision)
    return np.asarray(fn(trained.params, np.linspace(0.0, 1.0, 17))[0], np.float64)


def _is_linear(log_snrs: np.ndarray) -> bool:
    even = np.linspace(log_snrs[0], log_snrs[-1], len(log_snrs))
    return bool(np.allclose(log_snrs, even, rtol=0.0, atol=1e-4 * (log_snrs[0] - log_snrs[-1])))


def _subset(dataset: Dataset, n: int) -> Dataset:
    """Evenly spaced examples, so that the subset is the same in every run."""
    index = np.linspace(0, len(dataset) - 1, min(n, len(dataset))).round().astype(int)
    return dataset.subset(index)


def _origin(trained: Run, dataset: Dataset, settings: EvaluateConfig) -> Origin:
    return Origin(
        dataset=dataset.name,
        dataset_version=dataset.version,
        split=dataset.split,
        num_examples=len(dataset),
        num_dims=dataset.num_dims,
        params=trained.kind,
        step=trained.step,
        seed=settings.seed,
        ids_checksum=ids_checksum(dataset),
        unconditional=settings.unconditional,
        order=None if dataset.points is None else trained.model.order,
        mean_dims=None if dataset.points is None else float(dataset.dims.mean()),
    )
