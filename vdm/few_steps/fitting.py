"""Fitting a chain to training data: its variances first, then where its steps are placed."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vdm.choices import unknown
from vdm.condition import Condition, take
from vdm.few_steps import error as errors
from vdm.few_steps.chain import VARIANCES, Chain, Head, Table
from vdm.few_steps.error import Advance, Data, Model, Moments
from vdm.few_steps.head import VarianceHead, head_loss
from vdm.few_steps.placement import best_steps, cost_matrix, step_costs
from vdm.samplers import grids
from vdm.sets import mask_of

NUM_LEVELS = 128
NUM_EXAMPLES = 1024  # whose error is measured
# And with a head, where every example has a cost of its own for every pair of levels.
NUM_WITH_HEAD = 256
PRIOR_EXAMPLES = 8.0  # see `tables`
OF_SETS = ("none", "level", "channel")  # the variances of sets
HEAD_STEPS, HEAD_BATCH, HEAD_RATE = 3000, 32, 2e-3


class Fitted(NamedTuple):
    """What the chains of all numbers of steps are made of: variances and costs at N + 1 levels.

    `costs` [N + 1, N + 1] is in nats; `variance` is the head, or the table of all N levels that
    are not the last, or None.
    """

    moments: Moments
    variance: Table | Head | None
    costs: Float[np.ndarray, " levels levels"]
    clip_denoised: bool


def chain(
    model: Model,
    params: Any,
    x: Data,
    cond: Condition | None = None,
    *,
    num_steps: int,
    variance: str = "table",
    key: Key[Array, ""] | None = None,
    clip_denoised: bool | None = None,
    num_levels: int | None = None,
    batch_size: int = 256,
) -> Chain:
    """Return the chain of T = num_steps steps whose bound on the data x is the lowest.

    `x` [n, *d] are training data as they come, not encoded, with their conditions `cond` [n, ...].
    `variance` is what v may depend on: "none" for v = 0, "level" for one number a step, "channel"
    (the last axis), "table" for one of every dimension, or "head" for a small network of z, x̂ and λ
    that is fitted first; of sets (`vdm.sets`) it is one of the first three. The T + 1 levels are
    the best of `num_levels` levels, even in λ between the schedule's ends (128, or four for each
    step if that is more). x̂ is clipped to the data's range by default where they have one. Noise
    follows from the key, jax.random.key(0) by default.
    The parts of it are `fit` and `place`. Raises ValueError for an unknown variance, no data, or a
    number of steps that is not from 1 to the number of levels less one.
    """
    levels = num_levels or max(NUM_LEVELS, 4 * num_steps + 1)
    fitted = fit(
        model,
        params,
        x,
        cond,
        variance=variance,
        key=key,
        clip_denoised=clip_denoised,
        num_levels=levels,
        batch_size=batch_size,
    )
    return place(fitted, num_steps)


def even(model: Model, params: Any, num_steps: int, *, clip_denoised: bool = False) -> Chain:
    """Return the chain of `num_steps=T`: v = 0 and levels at even times of the schedule."""
    times = jnp.arange(num_steps, -1, -1) / num_steps
    return Chain(model.log_snr(params)(times), None, clip_denoised)


def fit(
    model: Model,
    params: Any,
    x: Data,
    cond: Condition | None = None,
    *,
    variance: str = "table",
    key: Key[Array, ""] | None = None,
    clip_denoised: bool | None = None,
    num_levels: int = NUM_LEVELS,
    batch_size: int = 256,
    head: nn.Module | None = None,
    head_steps: int = HEAD_STEPS,
    advance: Callable[[str, int, int], None] | None = None,
) -> Fitted:
    """Return variances and costs at `num_levels` levels, for chains of any number of steps.

    Arguments and errors are those of `chain`. The error is measured on at most 1,024 of the
    examples (256 with a head); a `head`, by default a `VarianceHead`, is fitted to all of them.
    `advance` is called with what is done, how much of it and out of how much.
    """
    if variance not in VARIANCES:
        raise ValueError(unknown("variance", variance, VARIANCES))
    if mask_of(cond) is not None and variance not in OF_SETS:
        raise ValueError(
            f"points of sets have no places: expected variance {', '.join(OF_SETS[:-1])} or "
            f"{OF_SETS[-1]}, got {variance!r}"
        )
    key = jax.random.key(0) if key is None else key
    key_moments, key_head = jax.random.split(key)
    clip = model.likelihood.bounds is not None if clip_denoised is None else clip_denoised
    log_snrs = _levels(model, params, num_levels)
    most = NUM_WITH_HEAD if variance == "head" else NUM_EXAMPLES
    some = np.linspace(0, len(x) - 1, min(most, len(x))).round().astype(int)
    part = x[some], take(cond, some)
    given = {"key": key_moments, "clip_denoised": clip, "batch_size": batch_size}
    if variance == "head":
        module = head or VarianceHead(levels=model.likelihood.levels)
        fitted = fit_head(
            model,
            params,
            module,
            x,
            cond,
            key=key_head,
            clip_denoised=clip,
            num_steps=head_steps,
            advance=_named(advance, "fit the head", head_steps),
        )
        return _with_head(
            model,
            params,
            fitted,
            *part,
            log_snrs=log_snrs,
            advance=_named(advance, "measure the error", num_levels - 1),
            **given,
        )
    found = errors.moments(
        model,
        params,
        *part,
        log_snrs=log_snrs,
        advance=_named(advance, "measure the error", num_levels - 1),
        **given,
    )
    table = tables(found, variance)
    values = np.zeros((len(found.error), *(1,) * (found.error.ndim - 1)))
    costs = cost_matrix(found.log_snrs, found.error, values if table is None else table.values)
    return Fitted(found, table, costs, clip)


def place(fitted: Fitted, num_steps: int) -> Chain:
    """Return the chain of the best num_steps + 1 of the levels that were measured.

    Raises ValueError for a number of steps that is not from 1 to the number of levels less one.
    """
    chosen, _ = best_steps(fitted.costs, num_steps)
    log_snrs = fitted.moments.log_snrs[chosen].astype(jnp.result_type(float))
    variance = fitted.variance
    if isinstance(variance, Table):
        variance = Table(np.asarray(variance.values)[chosen[:-1]].astype(log_snrs.dtype))
    return Chain(log_snrs, variance, fitted.clip_denoised)


def tables(moments: Moments, variance: str) -> Table | None:
    """Return the v of every level from the moments, which is their mean over what v cannot see.

    The mean of few examples is uncertain: each is joined by eight more that have the level's mean
    error, so that a pixel that never varied in training may vary after. None for "none".
    """
    error = moments.error
    axes = tuple(range(1, error.ndim))
    mean = error.mean(axis=axes, keepdims=True)
    if variance == "none":
        return None
    if variance == "level":
        return Table(mean)
    own, num = error, moments.num
    if variance == "channel":
        own = error.mean(axis=axes[:-1], keepdims=True)
    return Table((num * own + PRIOR_EXAMPLES * mean) / (num + PRIOR_EXAMPLES))


def fit_head(
    model: Model,
    params: Any,
    module: nn.Module,
    x: Data,
    cond: Condition | None = None,
    *,
    key: Key[Array, ""],
    clip_denoised: bool = False,
    num_steps: int = HEAD_STEPS,
    batch_size: int = HEAD_BATCH,
    learning_rate: float = HEAD_RATE,
    advance: Advance | None = None,
) -> Head:
    """Return a head fitted by `head_loss` with Adam, the denoiser held, at λ uniform on its range.

    Raises ValueError where there are no data.
    """
    import optax  # late: who fits no head need not wait for it

    if not len(x):
        raise ValueError("expected at least one example to fit the head to: got none")
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    low, high = _ends(model, params)
    key_init, key_steps = jax.random.split(key)
    size = min(batch_size, len(x))
    first = model.likelihood.encode(jnp.asarray(x[:1]))
    own = module.init(key_init, first, first, jnp.zeros(1, first.dtype))["params"]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(own: Any, state: Any, found: errors.Noised) -> tuple[Any, Any, jax.Array]:
        def loss(own: Any) -> jax.Array:
            return jnp.mean(head_loss(module, own, *found, log_snr_max=high))

        value, gradient = jax.value_and_grad(loss)(own)
        change, state = optimizer.update(gradient, state, own)
        return optax.apply_updates(own, change), state, value

    state = optimizer.init(own)
    for step in range(num_steps):
        here = jax.random.fold_in(key_steps, step)
        draw = np.random.default_rng(np.asarray(jax.random.key_data(here)))
        rows = np.sort(draw.choice(len(x), size, replace=False))
        # Spread evenly, with a common offset.
        where = np.mod(draw.random() + draw.permutation(size) / size, 1.0)
        found = errors.noised(
            params,
            here,
            x[rows],
            take(cond, rows),
            low + (high - low) * where,
            model=model,
            clip_denoised=clip_denoised,
        )
        own, state, _ = update(own, state, found)
        if advance is not None:
            advance(step + 1)
    return Head(module, own)


def _with_head(
    model: Model,
    params: Any,
    head: Head,
    x: Data,
    cond: Condition | None,
    *,
    log_snrs: np.ndarray,
    key: Key[Array, ""],
    clip_denoised: bool,
    batch_size: int,
    advance: Advance | None,
) -> Fitted:
    """Return the costs of steps whose v depends on z, which a table of moments does not have."""
    last = len(log_snrs) - 1
    costs = np.full((last + 1, last + 1), np.inf)
    rows = []
    for level in range(last):
        cost: Any = 0.0
        square: Any = 0.0
        for found in errors.batches(
            model, params, x, cond, key, level, log_snrs, clip_denoised, batch_size
        ):
            error, v = _error_and_v(head, found)
            share = len(error) / len(x)
            cost = cost + share * np.asarray(step_costs(log_snrs, level, error, v), np.float64)
            square = square + share * np.asarray(error, np.float64).mean(0)
        costs[level] = cost
        rows.append(square)
        if advance is not None:
            advance(level + 1)
    found_moments = Moments(np.asarray(log_snrs, np.float64), np.stack(rows), len(x))
    return Fitted(found_moments, head, costs, clip_denoised)


@jax.jit
def _error_and_v(head: Head, found: errors.Noised) -> tuple[jax.Array, jax.Array]:
    log_v: Any = head.module.apply({"params": head.params}, found.z, found.x_hat, found.log_snr)
    return jnp.square(found.x - found.x_hat), jnp.exp(log_v)


def _ends(model: Model, params: Any) -> tuple[float, float]:
    high, low = (float(model.log_snr(params)(jnp.asarray(t))) for t in (0.0, 1.0))
    return low, high


def _levels(model: Model, params: Any, num: int) -> np.ndarray:
    """Return levels even in λ, with the schedule's own ends."""
    low, high = _ends(model, params)
    return np.asarray(grids.uniform(high, low, num - 1), np.float64)


def _named(
    advance: Callable[[str, int, int], None] | None, what: str, total: int
) -> Advance | None:
    if advance is None:
        return None
    return lambda done: advance(what, done, total)
