"""The likelihood of every example of a data set under the probability-flow ODE."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from vdm import ode
from vdm.losses import bits_per_dim
from vdm.model import VDM, Params
from vdm.ode.options import Divergence, Steps
from vdm.run.config import EvaluateConfig, parse
from vdm.run.data.dataset import Dataset
from vdm.run.errors import as_user_error
from vdm.run.evaluation import rows
from vdm.run.evaluation.rows import RowFn
from vdm.run.trained import Trained

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
    trained: Trained,
    dataset: Dataset,
    settings: EvaluateConfig,
    dequantisation: str | None,
) -> None:
    """Raise UserError for settings that do not fit, before anything is computed."""
    first = np.arange(1)
    part = dataset.take(first)
    fn = _row_fn(trained, settings, dequantisation)
    with as_user_error("evaluation by the ODE"):
        jax.eval_shape(
            fn, trained.params, first, first, part.x, trained.condition.of(1, part.labels)
        )


def measure(
    trained: Trained,
    dataset: Dataset,
    settings: EvaluateConfig,
    dequantisation: str | None,
) -> Weights:
    """Return the log-weights of the draws of every example, as many as the largest K asked for.

    Raises UserError where a solve did not finish.
    """
    num_samples = max(parse.parse_counts(settings.num_samples))
    found = rows.of_examples(
        rows.compiled(_row_fn(trained, settings, dequantisation), trained.mesh),
        trained.params,
        trained.mesh,
        dataset,
        trained.condition,
        per_example=1,
        batch_size=settings.batch_size,
        what=f"evaluate {dataset.split} ODE {dequantisation or ''}".rstrip(),
        show=lambda done: f"{_bpd(done[:, :num_samples], dataset.num_dims):.3f} bpd",
        problem="the ODE solver did not finish (try a larger --tolerance, or --ode_steps)",
    )[:, 0]
    return Weights(found[:, :num_samples], *found[:, num_samples:].T)


def again(
    trained: Trained,
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
    return measure(trained._replace(params=changed), few, settings, dequantisation)


def bound(weights: Weights, num_samples: int, num_dims: int) -> np.ndarray:
    """Return the bound with K = num_samples draws for every example, bits per dimension [n].

    −log (1/K) Σ exp(log-weight), averaged over as many groups of K as there were draws for.
    """
    n, drawn = weights.log_weights.shape
    groups = drawn // num_samples
    cut = weights.log_weights[:, : groups * num_samples].reshape(n, groups, num_samples)
    log_means = np.logaddexp.reduce(cut, axis=2) - np.log(num_samples)
    return np.asarray(bits_per_dim(-log_means.mean(1), num_dims))


def options(settings: EvaluateConfig) -> tuple[Divergence, Steps]:
    """Return how the divergence is taken and which steps are made."""
    hutchinson = settings.divergence == "hutchinson"
    divergence = ode.hutchinson(settings.num_probes) if hutchinson else settings.divergence
    return divergence, settings.ode_steps or ode.adaptive(settings.tolerance, settings.tolerance)


def _bpd(done: np.ndarray, num_dims: int) -> float:
    return float(np.mean(bits_per_dim(-done, num_dims)))


def _row_fn(trained: Trained, settings: EvaluateConfig, dequantisation: str | None) -> RowFn:
    return functools.partial(
        _row,
        model=trained.model,
        settings=settings,
        dequantisation=dequantisation,
        num_samples=max(parse.parse_counts(settings.num_samples)),
    )


def _row(
    params: Params,
    example: Int[Array, " r"],
    row: Int[Array, " r"],
    x: Num[Array, " r *d"],
    cond: Int[Array, " r"] | None,
    *,
    model: VDM,
    settings: EvaluateConfig,
    dequantisation: str | None,
    num_samples: int,
) -> tuple[Float[Array, " r"], ...]:
    """Return the log-weights of an example's draws, evaluations per draw and their error; nats."""
    del row  # an example's draws follow each other, since they share their probes
    divergence, steps = options(settings)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(settings.seed), i))(example)
    draws = model.log_weights(
        params,
        keys,
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
