"""Evaluation: one exact pass over a split, in bits per dimension, with its standard error.

Every example gets the same number of noise levels, spread evenly with an offset of its
own under a law of λ, and all of its noise from a key made of the seed and its position
among the examples that are evaluated: the result depends on neither the batch size nor the
number of devices.
"""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from vdm.losses import bits_per_dim
from vdm.model import VLB
from vdm.run import (
    build,
    condition,
    config as configs,
    data,
    laws,
    mesh as meshes,
    processes,
)
from vdm.run.condition import Condition
from vdm.run.config import EvaluateConfig
from vdm.run.dataset import Dataset, ids_checksum, settle
from vdm.run.errors import UserError
from vdm.run.files import check_writable, replacing, write_json
from vdm.run.progress import bar
from vdm.run.trained import Trained

RESULT_FILE = "evaluation.json"
TERMS = VLB._fields


def evaluate(trained: Trained, split: str, settings: EvaluateConfig, workdir: pathlib.Path) -> dict:
    """Return and write the evaluation of a split: bpd with its terms, standard error and n.

    The record is that of the split at the largest T; "results" holds one such record for
    every T, for the split and for an equally large subset of the train split. It replaces
    the record of an earlier evaluation; the numbers for each example are kept in
    evaluation_<split>.npz. Raises UserError for an unknown split, a folder that cannot be
    written to or a result that is not finite.
    """
    values_of_t = configs.parse_num_steps(settings.num_steps)
    law = laws.for_evaluation(settings.law, trained.law)
    processes.first_alone(functools.partial(check_writable, workdir))
    where = trained.config.data.in_memory
    test = data.load(trained.config.data, split)
    subset = _subset(data.load(trained.config.data, "train"), len(test))
    build.check_values(trained.model, test)
    datasets = [test] if split == "train" else [test, subset]
    row_terms = jax.jit(
        functools.partial(
            _row_terms,
            model=trained.model,
            law=law,
            num_levels=settings.levels_per_example,
            seed=settings.seed,
        ),
        out_shardings=meshes.whole(trained.mesh),
    )
    results: list[dict[str, Any]] = []
    kept: dict[str, np.ndarray] = {}
    for stored in datasets:
        dataset = settle(stored, where)  # it is read for every T, and for its checksum
        told = condition.build(trained.model.network, dataset, trained.config.data.augment)
        checksum = ids_checksum(dataset)
        for num_steps in values_of_t:
            terms = _examples_bpd(row_terms, trained, dataset, told, settings, num_steps)
            record = _record(terms, trained, dataset, settings, num_steps)
            results.append({**record, "ids_checksum": checksum})
            if stored is test:
                label = "inf" if num_steps is None else str(num_steps)
                kept |= {f"{name}_{label}": terms[name] for name in TERMS}
    largest = max(range(len(values_of_t)), key=lambda i: values_of_t[i] or math.inf)
    headline = results[largest]
    record = {**headline, "results": results}
    if processes.is_first():
        with replacing(workdir / f"evaluation_{split}.npz") as temporary:
            np.savez(temporary, **kept)  # type: ignore[arg-type]
        write_json(workdir / RESULT_FILE, record)
    return record


def _examples_bpd(
    row_terms: Callable[..., VLB],
    trained: Trained,
    dataset: Dataset,
    told: Condition,
    settings: EvaluateConfig,
    num_steps: int | None,
) -> dict[str, np.ndarray]:
    """Return every term of the bound for every example, in bits per dimension, float64 [n]."""
    levels = settings.levels_per_example
    num_rows, mesh = len(dataset) * levels, trained.mesh
    size = meshes.padded(mesh, min(settings.batch_size, num_rows))
    here = meshes.rows_here(mesh, size)
    rows = np.empty((num_rows, len(TERMS)), np.float64)
    label = "inf" if num_steps is None else str(num_steps)
    with bar(f"evaluate {dataset.split} T={label}", num_rows) as advance:
        for start in range(0, num_rows, size):
            # The last batch is filled up with its own last row; the copies are dropped.
            row = np.minimum(start + here, num_rows - 1)
            example, level = row // levels, row % levels
            # Every example is read once, however many of its levels are in the batch.
            distinct, where = np.unique(example, return_inverse=True)
            part = dataset.take(distinct)
            cond = told.of(len(distinct), part.labels)
            cond = None if cond is None else cond[where]
            batch = meshes.put(mesh, size, here, (example, level, part.x[where], cond))
            terms = row_terms(trained.params, trained.levels, *batch, num_steps)
            done = min(start + size, num_rows)
            rows[start:done] = np.stack(jax.device_get(tuple(terms)), axis=-1)[: done - start]
            if start // size % 50 == 0 or done == num_rows:
                advance(done, f"{_bpd(rows[:done], dataset):.3f} bpd")
    mean = bits_per_dim(rows.reshape(len(dataset), levels, len(TERMS)).mean(1), dataset.num_dims)
    return {name: np.asarray(mean[:, i]) for i, name in enumerate(TERMS)}


def _row_terms(
    params, law_state, example, level, x, cond, num_steps, *, model, law, num_levels, seed
) -> VLB:
    """One noise level of one example in each row; nats."""
    chex.assert_equal_shape_prefix((example, level, x), 1)
    fold_in = jax.vmap(jax.random.fold_in)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(example)
    offset_keys = jax.vmap(lambda k: jax.random.fold_in(k, num_levels))(keys)
    offset = jax.vmap(jax.random.uniform)(offset_keys)
    where = jnp.mod(offset + level / num_levels, 1.0)
    if num_steps is None:
        # The bound weighs every level alike, whatever the training did.
        where = law.levels(law_state, model.log_snr(params), where, stratified=True)
    return model.vlb(params, fold_in(keys, level), x, cond, noise_levels=where, num_steps=num_steps)


def _subset(dataset: Dataset, n: int) -> Dataset:
    """Evenly spaced examples, so that the subset is the same in every run."""
    index = np.linspace(0, len(dataset) - 1, min(n, len(dataset))).round().astype(int)
    return dataset.subset(index)


def _bpd(rows: np.ndarray, dataset: Dataset) -> float:
    return float(bits_per_dim(rows.sum(-1), dataset.num_dims).mean())


def _record(
    terms: dict[str, np.ndarray],
    trained: Trained,
    dataset: Dataset,
    settings: EvaluateConfig,
    num_steps: int | None,
) -> dict[str, Any]:
    law_name = laws.name_of(laws.for_evaluation(settings.law, trained.law))
    total = np.sum([terms[name] for name in TERMS], axis=0)
    if not np.all(np.isfinite(total)):
        raise UserError(f"the bound of {int((~np.isfinite(total)).sum())} examples is not finite")
    return {
        "bpd": _mean(total),
        "terms": {name: _mean(value) for name, value in terms.items()},
        "bound": "vlb",
        "num_steps": "inf" if num_steps is None else num_steps,
        "dataset": dataset.name,
        "dataset_version": dataset.version,
        "split": dataset.split,
        "num_examples": len(dataset),
        "num_dims": dataset.num_dims,
        "levels_per_example": settings.levels_per_example,
        "law": law_name if num_steps is None else "schedule",
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
