"""The variational bound of every example of a data set, at T steps or in continuous time."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Num, PyTree, UInt32

from vdm.condition import Condition as Given
from vdm.laws import Law
from vdm.model import VDM, Params
from vdm.noise_levels import NoiseLevels
from vdm.run import keys
from vdm.run.config import EvaluateConfig
from vdm.run.data.dataset import Dataset
from vdm.run.evaluation import rows, units
from vdm.run.evaluation.rows import RowFn
from vdm.run.run import Run, condition_of
from vdm.run.training.objective import for_evaluation

# Parameters, the law's state, T and a key's numbers.
State = tuple[Params, PyTree, int | Int[Array, ""] | None, UInt32[Array | np.ndarray, " k"]]
NOT_FINITE = "the bound is not finite"


class AtLevels(NamedTuple):
    """A bound's terms in bits per dimension, [n, levels, 3], and where each was taken, [n, levels].

    That is λ at T = ∞; at finite T it is set to 0.
    """

    terms: np.ndarray
    log_snr: np.ndarray


def row_fn(trained: Run, settings: EvaluateConfig, *, clip_denoised: bool) -> jax.stages.Wrapped:
    """Return the function of a row, one noise level of one example; see `compiled`."""
    return compiled(
        trained.model,
        for_evaluation(settings.law, trained.law),
        trained.mesh,
        num_levels=settings.levels_per_example,
        precision=settings.precision,
        clip_denoised=clip_denoised,
    )


def compiled(
    model: VDM,
    law: Law,
    mesh: Mesh,
    *,
    num_levels: int,
    precision: str,
    clip_denoised: bool = False,
) -> jax.stages.Wrapped:
    """Return the function of a row, compiled once for all T and all keys; it is given a `state`."""
    fn = functools.partial(
        row, model=model, law=law, num_levels=num_levels, clip_denoised=clip_denoised
    )
    return rows.compiled(fn, mesh, precision)


def state(trained: Run, num_steps: int | None, key: np.ndarray) -> State:
    """Return what all rows share: parameters, the law's state, T, and the key of all noise."""
    return trained.params, trained.law_state, num_steps, key


def measure(
    fn: RowFn,
    trained: Run,
    dataset: Dataset,
    settings: EvaluateConfig,
    num_steps: int | None,
) -> AtLevels:
    """Return the bound of every example, at every one of its noise levels; T = num_steps."""
    found = rows.of_examples(
        fn,
        state(trained, num_steps, keys.data(settings.seed)),
        trained.mesh,
        dataset,
        condition_of(trained, settings),
        per_example=settings.levels_per_example,
        batch_size=settings.batch_size,
        what=f"evaluate {dataset.split} T={'inf' if num_steps is None else num_steps}",
        show=lambda done: so_far(done, dataset, settings.levels_per_example),
        problem=NOT_FINITE,
    )
    return at_levels(found, dataset.dims)


def at_levels(found: np.ndarray, dims: int | np.ndarray) -> AtLevels:
    """Return what rows have computed, [n, levels, 4] with the terms in nats, in bits."""
    return AtLevels(units.in_bits(found[..., :3], dims), found[..., 3])


def so_far(done: np.ndarray, dataset: Dataset, per_example: int) -> str:
    """Return the mean of the rows [r, 4] done so far as a text."""
    return units.so_far(done[:, :3].sum(-1), dataset, per_example)


def error(terms: np.ndarray) -> np.ndarray | None:
    """Return the Monte Carlo error of every example, [n], from the spread over its noise levels.

    The levels are stratified, so the true error is smaller. None where there is one level.
    """
    levels = terms.shape[1]
    return terms.sum(-1).std(1, ddof=1) / np.sqrt(levels) if levels > 1 else None


def row(
    state: State,
    example: Int[Array, " r"],
    level: Int[Array, " r"],
    x: Num[Array, " r *d"],
    cond: Given | None,
    *,
    model: VDM,
    law: Law,
    num_levels: int,
    clip_denoised: bool,
) -> tuple[Float[Array, " r"], ...]:
    """Return the terms of the bound in nats and the noise level used."""
    params, law_state, num_steps, key = state
    chex.assert_equal_shape_prefix((example, level, x), 1)
    fold_in = jax.vmap(jax.random.fold_in)
    own_keys = keys.of_examples(key, example)
    offset_keys = jax.vmap(lambda k: jax.random.fold_in(k, num_levels))(own_keys)
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
        fold_in(own_keys, level),
        x,
        cond,
        noise_levels=where,
        num_steps=num_steps,
        clip_denoised=clip_denoised,
    )
    return (*terms, log_snr)
