"""How far x̂ is from x at every level of noise, measured on data."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num

from vdm.condition import Condition, take
from vdm.diffusion import convert, q_sample
from vdm.likelihoods import Likelihood
from vdm.losses import EpsFn
from vdm.schedules.base import LogSnrFn
from vdm.sets import Mask, filled, mask_of, wiped

Advance = Callable[[int], None]
Data = Num[Array | np.ndarray, " n *d"]


@runtime_checkable
class Model(Protocol):
    """What a chain is fitted to: the parts of `vdm.VDM` that are needed for it."""

    @property
    def likelihood(self) -> Likelihood:
        """What encodes data, and knows their range."""
        ...

    def log_snr(self, params: Any) -> LogSnrFn:
        """Return the schedule's λ(t)."""
        ...

    def denoiser(self, params: Any, cond: Any = None, *, clip_denoised: bool = False) -> EpsFn:
        """Return eps_fn(z, log_snr) → ε̂."""
        ...


class Moments(NamedTuple):
    """The mean of (x − x̂)² over examples, at every one of increasing levels but the last.

    `log_snrs` are the levels, [N + 1]; `error` is [N, *d], `num` the number of examples.
    """

    log_snrs: Float[np.ndarray, " levels"]
    error: Float[np.ndarray, " steps *d"]
    num: int


class Noised(NamedTuple):
    """Encoded data, their noised form and x̂, each [b, *d], at levels [b]."""

    x: Float[Array, " b *d"]
    z: Float[Array, " b *d"]
    x_hat: Float[Array, " b *d"]
    log_snr: Float[Array, " b"]


@functools.partial(jax.jit, static_argnames=("model", "clip_denoised"))
def noised(
    params: Any,
    key: Key[Array, ""],
    x: Data,
    cond: Condition | None,
    log_snr: Float[Array | np.ndarray, " b"],
    *,
    model: Model,
    clip_denoised: bool,
) -> Noised:
    """Return raw data x with fresh noise at the given levels, and the model's x̂ of it."""
    mask = mask_of(cond)
    encoded = wiped(model.likelihood.encode(filled(jnp.asarray(x), mask, model.likelihood)), mask)
    level = jnp.asarray(log_snr, encoded.dtype)
    z = q_sample(encoded, wiped(jax.random.normal(key, encoded.shape, encoded.dtype), mask), level)
    eps_hat = model.denoiser(params, cond, clip_denoised=clip_denoised)(z, level)
    return Noised(encoded, z, convert(eps_hat, z, level, source="eps", target="x"), level)


def moments(
    model: Model,
    params: Any,
    x: Data,
    cond: Condition | None = None,
    *,
    key: Key[Array, ""],
    log_snrs: Float[np.ndarray, " levels"],
    clip_denoised: bool = False,
    batch_size: int = 256,
    advance: Advance | None = None,
) -> Moments:
    """Return the mean of (x − x̂)² over raw data x [n, *d] at increasing levels, in float64.

    Every example has one draw of noise a level. `cond` has one row for each example. `advance` is
    called with the number of levels done. Of sets (`vdm.sets`) it is the mean over all points, of
    every channel, [N, 1, c]. Raises ValueError where there is nothing to measure on.
    """
    if not len(x):
        raise ValueError("expected at least one example to measure the error on: got none")
    rows = []
    mask = mask_of(cond)
    for level in range(len(log_snrs) - 1):
        total: Any = 0.0
        for found in batches(
            model, params, x, cond, key, level, log_snrs, clip_denoised, batch_size
        ):
            total = total + np.asarray(_sum_square(found), np.float64)
        rows.append(total / len(x) if mask is None else _per_point(total, mask))
        if advance is not None:
            advance(level + 1)
    return Moments(np.asarray(log_snrs, np.float64), np.stack(rows), len(x))


def batches(
    model: Model,
    params: Any,
    x: Data,
    cond: Condition | None,
    key: Key[Array, ""],
    level: int,
    log_snrs: Float[np.ndarray, " levels"],
    clip_denoised: bool,
    batch_size: int,
) -> Iterator[Noised]:
    """Yield all examples at one of the levels, a batch at a time; equal keys give equal noise."""
    own = jax.random.fold_in(key, level)
    for start in range(0, len(x), batch_size):
        rows = slice(start, start + batch_size)
        here = x[rows]
        given = take(cond, rows)
        yield noised(
            params,
            jax.random.fold_in(own, start),
            here,
            given,
            np.full(len(here), log_snrs[level]),
            model=model,
            clip_denoised=clip_denoised,
        )


def _per_point(total: Float[np.ndarray, " n c"], mask: Mask) -> Float[np.ndarray, " 1 c"]:
    """Return the mean over points of a sum over sets, to which the padding gave nothing."""
    found: np.ndarray = total.sum(axis=0, keepdims=True) / np.asarray(mask).sum()
    return found


@jax.jit
def _sum_square(found: Noised) -> Float[Array, "*d"]:
    return jnp.sum(jnp.square(found.x - found.x_hat), axis=0)
