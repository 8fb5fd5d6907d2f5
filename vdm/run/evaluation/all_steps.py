"""The variational bound of every example of a data set by a fitted chain, over all of its steps.

A chain has few steps: each example takes every one of them, and none is drawn at random.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, UInt32

from vdm.condition import Condition as Given
from vdm.few_steps import Chain
from vdm.model import VDM, Params
from vdm.run import keys
from vdm.run.config import EvaluateConfig
from vdm.run.data.dataset import Dataset
from vdm.run.evaluation import bound, rows, units
from vdm.run.evaluation.rows import RowFn
from vdm.run.run import Run, condition_of

# Parameters, the chain and a key's numbers.
State = tuple[Params, Chain, UInt32[Array | np.ndarray, " k"]]


def row_fn(trained: Run, precision: str) -> RowFn:
    """Return the function of a row, one step for one example; it is compiled once for every T."""
    return rows.compiled(functools.partial(_row, model=trained.model), trained.mesh, precision)


def measure(
    fn: RowFn, trained: Run, dataset: Dataset, settings: EvaluateConfig, chain: Chain
) -> np.ndarray:
    """Return the terms of every example's bound in bits per dimension, [n, passes, 3].

    A pass goes over all T steps, each with noise of its own: it estimates the whole bound. There
    are as many as make about `levels_per_example` rows of an example, and one at least.
    """
    num_steps = chain.num_steps
    passes = max(1, settings.levels_per_example // num_steps)
    found = rows.of_examples(
        fn,
        (trained.params, chain, keys.data(settings.seed)),
        trained.mesh,
        dataset,
        condition_of(trained, settings),
        per_example=num_steps * passes,
        batch_size=settings.batch_size,
        what=f"evaluate {dataset.split} T={num_steps} chain",
        show=lambda done: bound.so_far(done, dataset, num_steps * passes),
        problem=bound.NOT_FINITE,
    )
    of_passes = found.reshape(len(dataset), passes, num_steps, 3).mean(2)
    return units.in_bits(of_passes, dataset.dims)


def _row(
    state: State,
    example: Int[Array, " r"],
    row: Int[Array, " r"],
    x: Num[Array, " r *d"],
    cond: Given | None,
    *,
    model: VDM,
) -> tuple[Float[Array, " r"], ...]:
    """Return the terms of the bound in nats, the diffusion term taken at one step."""
    params, chain, key = state
    chex.assert_equal_shape_prefix((example, row, x), 1)
    fold_in = jax.vmap(jax.random.fold_in)
    own_keys = keys.of_examples(key, example)
    # The middle of a step's interval of times, which rounding does not move to another step.
    middle = (jnp.mod(row, chain.num_steps) + 0.5) / chain.num_steps
    terms = model.vlb(params, fold_in(own_keys, row), x, cond, chain=chain, noise_levels=middle)
    return tuple(terms)
