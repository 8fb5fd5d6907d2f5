"""The variational bound of every example of a data set, at T steps or in continuous time."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, PyTree

from vdm.laws import Law
from vdm.losses import bits_per_dim
from vdm.model import VDM, Params
from vdm.noise_levels import NoiseLevels
from vdm.run.config import EvaluateConfig
from vdm.run.data.dataset import Dataset
from vdm.run.evaluation import rows
from vdm.run.evaluation.rows import RowFn
from vdm.run.trained import Trained
from vdm.run.training.objective import for_evaluation


class AtLevels(NamedTuple):
    """A bound's terms in bits per dimension, [n, levels, 3], and where each was taken, [n, levels].

    That is λ at T = ∞; at finite T it is set to 0.
    """

    terms: np.ndarray
    log_snr: np.ndarray


def row_fn(trained: Trained, settings: EvaluateConfig, *, clip_denoised: bool) -> RowFn:
    """Return the function of a row, one noise level of one example, compiled once for all T."""
    fn = functools.partial(
        _row,
        model=trained.model,
        law=for_evaluation(settings.law, trained.law),
        num_levels=settings.levels_per_example,
        seed=settings.seed,
        clip_denoised=clip_denoised,
    )
    return rows.compiled(fn, trained.mesh)


def measure(
    fn: RowFn,
    trained: Trained,
    dataset: Dataset,
    settings: EvaluateConfig,
    num_steps: int | None,
) -> AtLevels:
    """Return the bound of every example, at every one of its noise levels; T = num_steps."""
    found = rows.of_examples(
        fn,
        (trained.params, trained.law_state, num_steps),
        trained.mesh,
        dataset,
        trained.condition,
        per_example=settings.levels_per_example,
        batch_size=settings.batch_size,
        what=f"evaluate {dataset.split} T={'inf' if num_steps is None else num_steps}",
        show=lambda done: f"{_bpd(done[:, :3], dataset.num_dims):.3f} bpd",
        problem="the bound is not finite",
    )
    terms = bits_per_dim(found[..., :3], dataset.num_dims)
    return AtLevels(np.asarray(terms), found[..., 3])


def _bpd(done: np.ndarray, num_dims: int) -> float:
    return float(np.mean(bits_per_dim(done.sum(-1), num_dims)))


def _row(
    state: tuple[Params, PyTree, int | Int[Array, ""] | None],
    example: Int[Array, " r"],
    level: Int[Array, " r"],
    x: Num[Array, " r *d"],
    cond: Int[Array, " r"] | None,
    *,
    model: VDM,
    law: Law,
    num_levels: int,
    seed: int,
    clip_denoised: bool,
) -> tuple[Float[Array, " r"], ...]:
    """Return the terms of the bound in nats and the noise level used."""
    params, law_state, num_steps = state
    chex.assert_equal_shape_prefix((example, level, x), 1)
    fold_in = jax.vmap(jax.random.fold_in)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(example)
    offset_keys = jax.vmap(lambda k: jax.random.fold_in(k, num_levels))(keys)
    offset = jax.vmap(jax.random.uniform)(offset_keys)
    position = jnp.mod(offset + level / num_levels, 1.0)
    where: jax.Array | NoiseLevels = position  # times, or levels with their density
    log_snr = jnp.zeros_like(position)
    if num_steps is None:
        # The bound has no weighting, whatever training used.
        where = law.levels(law_state, model.log_snr(params), position, stratified=True)
        log_snr = where.log_snr
    terms = model.vlb(
        params,
        fold_in(keys, level),
        x,
        cond,
        noise_levels=where,
        num_steps=num_steps,
        clip_denoised=clip_denoised,
    )
    return (*terms, log_snr)
