"""The importance bound of every example from K whole paths of a chain: how loose is the VLB?

VLB ≤ K-path bound ≤ log P, in the mean over paths, and the more paths the nearer to log P of the
chain (Burda et al. 2016, theorem 1). A path costs T evaluations of the network, in one batch.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from vdm import few_steps
from vdm.condition import Condition as Given
from vdm.few_steps import Chain
from vdm.model import VDM, Params
from vdm.run import keys
from vdm.run.config import EvaluateConfig
from vdm.run.data.dataset import Dataset
from vdm.run.evaluation import rows, units
from vdm.run.evaluation.all_steps import State
from vdm.run.evaluation.rows import RowFn
from vdm.run.run import Run, condition_of

NOT_FINITE = "the importance bound of whole paths is not finite"
OWN_NOISE = 2**32 - 1  # no example's position: paths share no noise with the rows of a bound


class OfExamples(NamedTuple):
    """The K-path bound of every example [n], and how much looser the VLB is, in bits."""

    bpd: np.ndarray
    looser: np.ndarray


def row_fn(trained: Run, precision: str) -> RowFn:
    """Return the function of a row, one path of one example; it is compiled once for every T."""
    return rows.compiled(functools.partial(_row, model=trained.model), trained.mesh, precision)


def even(trained: Run, num_steps: int, *, clip_denoised: bool, precision: str) -> Chain:
    """Return the chain of the bound with T = num_steps, its levels even in the schedule's time."""

    def levels(params: Params) -> tuple[jax.Array]:
        return (jnp.asarray(few_steps.even(trained.model, params, num_steps).log_snrs),)

    (found,) = rows.compiled(levels, trained.mesh, precision)(trained.params)
    return Chain(np.asarray(found), None, clip_denoised)


def measure(
    fn: RowFn, trained: Run, dataset: Dataset, settings: EvaluateConfig, chain: Chain
) -> OfExamples:
    """Return the bound of every example by K = settings.num_paths paths of a chain."""
    num_steps = chain.num_steps
    found = rows.of_examples(
        fn,
        (trained.params, chain, keys.data(settings.seed)),
        trained.mesh,
        dataset,
        condition_of(trained, settings),
        per_example=settings.num_paths,
        batch_size=max(1, settings.batch_size // num_steps),
        what=f"evaluate {dataset.split} T={num_steps} paths",
        show=lambda done: units.so_far(-done[:, 0], dataset, settings.num_paths),
        problem=NOT_FINITE,
    )
    return of_weights(found[..., 0], dataset.dims)


def of_weights(log_weights: np.ndarray, dims: int | np.ndarray) -> OfExamples:
    """Return both numbers from log-weights in nats, [n, K].

    The bound is −log (1/K) Σ exp(log-weight). By Jensen's inequality the mean of −log-weight, an
    estimate of the VLB from the same paths, is never below it.
    """
    bound = np.log(log_weights.shape[1]) - np.logaddexp.reduce(log_weights, axis=1)
    looser = -log_weights.mean(1) - bound
    return OfExamples(units.in_bits(bound, dims), units.in_bits(looser, dims))


def _row(
    state: State,
    example: Int[Array, " r"],
    path: Int[Array, " r"],
    x: Num[Array, " r *d"],
    cond: Given | None,
    *,
    model: VDM,
) -> tuple[Float[Array, " r"]]:
    """Return the log-weight of a path in nats."""
    params, chain, key = state
    chex.assert_equal_shape_prefix((example, path, x), 1)
    fold_in = jax.vmap(jax.random.fold_in)
    of_paths = jax.random.key_data(jax.random.fold_in(keys.of(key), np.uint32(OWN_NOISE)))
    own_keys = keys.of_examples(of_paths, example)
    return (model.path_weights(params, fold_in(own_keys, path), x, cond, chain=chain),)
