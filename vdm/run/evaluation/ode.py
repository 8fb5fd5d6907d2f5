"""The likelihood of every example of a data set under the probability-flow ODE."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Num, UInt32

from vdm import ode
from vdm.condition import Condition as Given
from vdm.model import VDM, Params
from vdm.ode.options import Divergence, Steps
from vdm.run import keys
from vdm.run.config import EvaluateConfig, parse
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import Dataset
from vdm.run.errors import as_user_error
from vdm.run.evaluation import rows, units
from vdm.run.evaluation.rows import RowFn
from vdm.run.run import Run, condition_of

State = tuple[Params, UInt32[Array | np.ndarray, " k"]]  # parameters, and a key's numbers
NOT_FINISHED = "the ODE solver did not finish (try a larger --tolerance, or --ode_steps)"

PRECISION = "highest"  # whatever is asked for: a solve lets what is rounded away grow
FEW = 8  # examples that are solved again
CHANGE = 1e-6  # of every parameter, relative: a few times what rounding does


class Weights(NamedTuple):
    """Per example: log-weights of its draws [n, k], and their cost and error [n]; nats.

    `nfe` is the mean number of evaluations of its draws and `most` the largest; the
    `standard_error` is that of the divergence.
    """

    log_weights: np.ndarray
    nfe: np.ndarray
    most: np.ndarray
    standard_error: np.ndarray


def check(
    trained: Run,
    dataset: Dataset,
    settings: EvaluateConfig,
    dequantisation: str | None,
) -> None:
    """Raise UserError for settings that do not fit, before anything is computed."""
    fn = row_fn(trained, settings, dequantisation)
    check_rows(fn, trained, dataset, condition_of(trained, settings))


def check_rows(fn: RowFn, trained: Run, dataset: Dataset, condition: Condition) -> None:
    """Raise UserError where the function of a row does not take the model and the data."""
    first = np.arange(1)
    part = dataset.take(first)
    with as_user_error("evaluation by the ODE"):
        shared = state(trained, keys.data(0))
        jax.eval_shape(fn, shared, first, first, part.x, condition.of_examples(part))


def measure(
    trained: Run,
    dataset: Dataset,
    settings: EvaluateConfig,
    dequantisation: str | None,
    params: Params | None = None,
) -> Weights:
    """Return the log-weights of the draws of every example, as many as the largest K asked for.

    `params` are by default the run's. Raises UserError where a solve did not finish.
    """
    found = rows.of_examples(
        row_fn(trained, settings, dequantisation),
        (trained.params if params is None else params, keys.data(settings.seed)),
        trained.mesh,
        dataset,
        condition_of(trained, settings),
        per_example=1,
        batch_size=settings.batch_size,
        what=f"evaluate {dataset.split} ODE {dequantisation or ''}".rstrip(),
        show=lambda done: so_far(done, dataset),
        problem=NOT_FINISHED,
    )
    return weights(found)


def weights(found: np.ndarray) -> Weights:
    """Return what rows have computed, [n, 1, k + 3]."""
    *log_weights, nfe, most, standard_error = found[:, 0].T
    return Weights(np.stack(log_weights, axis=1), nfe, most, standard_error)


def again(
    trained: Run,
    dataset: Dataset,
    settings: EvaluateConfig,
    dequantisation: str | None,
) -> Weights:
    """Return the log-weights of the first few examples with parameters that differ by CHANGE.

    A solve can let tiny differences grow without bound, above all in a network that is hardly
    trained. Then its answer is that of the rounding of one machine.
    """
    few = dataset.subset(np.arange(min(FEW, len(dataset))))
    changed = jax.tree.map(lambda leaf: leaf * (1.0 + CHANGE), trained.params)
    return measure(trained, few, settings, dequantisation, params=changed)


def bound(weights: Weights, num_samples: int, dims: int | np.ndarray) -> np.ndarray:
    """Return the bound with K = num_samples draws for every example, bits per dimension [n].

    −log (1/K) Σ exp(log-weight), averaged over as many groups of K as there were draws for.
    """
    n, drawn = weights.log_weights.shape
    groups = drawn // num_samples
    cut = weights.log_weights[:, : groups * num_samples].reshape(n, groups, num_samples)
    log_means = np.logaddexp.reduce(cut, axis=2) - np.log(num_samples)
    return units.in_bits(-log_means.mean(1), dims)


def error(weights: Weights, settings: EvaluateConfig, dequantisation: str | None) -> np.ndarray:
    """Return the Monte Carlo error of every example's bound with all its draws, in nats [n].

    Of K draws of an integer's position it is that of the logarithm of their mean weight, to first
    order; beside it stands that of the random probes. NaN where there is only one of either.
    """
    n, drawn = weights.log_weights.shape
    squared = np.zeros(n)
    if dequantisation is not None:
        top = weights.log_weights.max(axis=1, keepdims=True)
        share = np.exp(weights.log_weights - top)
        spread = share.std(1, ddof=1) if drawn > 1 else np.full(n, np.nan)
        squared += (spread / share.mean(1)) ** 2 / drawn
    if settings.divergence == "hutchinson":
        one = settings.num_probes == 1
        squared += np.full(n, np.nan) if one else weights.standard_error**2
    return np.sqrt(squared)


def most_draws(settings: EvaluateConfig) -> int:
    """Return the largest number of draws K that the settings ask for."""
    return max(parse.parse_counts(settings.num_samples))


def options(settings: EvaluateConfig) -> tuple[Divergence, Steps]:
    """Return how the divergence is taken and which steps are made."""
    hutchinson = settings.divergence == "hutchinson"
    divergence = ode.hutchinson(settings.num_probes) if hutchinson else settings.divergence
    return divergence, settings.ode_steps or ode.adaptive(settings.tolerance, settings.tolerance)


def so_far(done: np.ndarray, dataset: Dataset) -> str:
    """Return the mean of the rows [r, k + 3] done so far as a text."""
    return units.so_far(-done[:, :-3].mean(1), dataset)


def row_fn(trained: Run, settings: EvaluateConfig, dequantisation: str | None) -> RowFn:
    """Return the function of a row, all draws of one example; see `compiled`."""
    return compiled(trained.model, trained.mesh, settings, dequantisation)


def compiled(model: VDM, mesh: Mesh, settings: EvaluateConfig, dequantisation: str | None) -> RowFn:
    """Return the function of a row, compiled once for all keys; it is given a `state`."""
    fn = functools.partial(
        _row,
        model=model,
        settings=settings,
        dequantisation=dequantisation,
        num_samples=most_draws(settings),
    )
    return rows.compiled(fn, mesh, PRECISION)


def state(trained: Run, key: np.ndarray) -> State:
    """Return what all rows share: parameters, and the key of all noise."""
    return trained.params, key


def _row(
    state: State,
    example: Int[Array, " r"],
    row: Int[Array, " r"],
    x: Num[Array, " r *d"],
    cond: Given | None,
    *,
    model: VDM,
    settings: EvaluateConfig,
    dequantisation: str | None,
    num_samples: int,
) -> tuple[Float[Array, " r"], ...]:
    """Return the log-weights of an example's draws, evaluations per draw and their error; nats."""
    del row  # an example's draws follow each other, since they share their probes
    params, key = state
    divergence, steps = options(settings)
    own_keys = keys.of_examples(key, example)
    draws = model.log_weights(
        params,
        own_keys,
        x,
        cond,
        dequantisation=dequantisation,
        num_samples=num_samples,
        divergence=divergence,
        steps=steps,
    )
    # One probe has no error estimate: NaN, which does not mean that the solve failed.
    error = jnp.nan_to_num(jnp.mean(draws.standard_error, axis=0))
    nfe = draws.nfe.astype(float)
    return (*draws.log_weights, jnp.mean(nfe, axis=0), jnp.max(nfe, axis=0), error)
