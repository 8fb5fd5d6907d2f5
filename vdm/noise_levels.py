"""Which noise levels to draw, and the weight of each draw.

Drawing takes two choices. First positions u in [0, 1), uniform by themselves: `uniform`,
`low_discrepancy` or `stratified`. Then the law of λ that the positions are mapped to: the
schedule's own (`from_times`), the closed form p(λ) ∝ sigmoid(λ) (`sigmoid_law`), or a
histogram that learns where the loss varies (`vdm.adaptive`). Every law leaves the
integral ½ ∫ E‖ε − ε̂‖² dλ unchanged; they differ in the variance of its estimate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm.schedules import log_snr_and_rate
from vdm.schedules.base import LogSnrFn


class NoiseLevels(NamedTuple):
    """Noise levels drawn with a density p, and 1/p: mean(f(λ)/p(λ)) estimates ∫ f dλ."""

    log_snr: Float[Array, " b"]
    inverse_density: Float[Array, " b"]


def uniform(key: Key[Array, ""], n: int) -> Float[Array, " n"]:
    """Return n independent positions, u_i ~ U[0, 1)."""
    return jax.random.uniform(key, (n,), float)


def low_discrepancy(key: Key[Array, ""], n: int) -> Float[Array, " n"]:
    """Return n evenly spaced positions with one random offset, u_i = frac(u + i/n).

    Each u_i is uniform by itself and together they cover the interval evenly, which
    takes most of the noise level's share out of the batch estimate's variance
    (VDM, appendix I.1).
    """
    offset = jax.random.uniform(key, (), float)
    # An integer arange: arange(0, 1, 1/n) has n + 1 entries at n = 49, 98, 103, ...
    return jnp.mod(offset + jnp.arange(n) / n, 1.0)


def stratified(key: Key[Array, ""], n: int) -> Float[Array, " n"]:
    """Return one independent position in each of n equal strata, in random order.

    u_i = (π(i) + v_i)/n: without the permutation an example's place in the batch would
    fix its noise level.
    """
    key_order, key_offset = jax.random.split(key)
    strata = jax.random.permutation(key_order, n)
    return (strata + jax.random.uniform(key_offset, (n,), float)) / n


def from_times(log_snr_fn: LogSnrFn, t: Float[Array, " b"]) -> NoiseLevels:
    """Return the schedule's levels at uniform times: 1/p(λ) = −dλ/dt (VDM, eq. 17)."""
    log_snr, rate = log_snr_and_rate(log_snr_fn, t)
    return NoiseLevels(log_snr, -rate)


def sigmoid_law(
    u: Float[Array, " b"],
    log_snr_max: Float[Array, ""] | float,
    log_snr_min: Float[Array, ""] | float,
) -> NoiseLevels:
    """Return levels with density p(λ) = sigmoid(λ)/Z between the ends, from uniform positions.

    Z = softplus(λ_max) − softplus(λ_min) and λ(u) = log expm1((1 − u) softplus(λ_max) +
    u softplus(λ_min)). A weighting in closed form that suits images: 1/p times the error
    of ε is a constant times the error of v (Zheng et al. 2023, i-DODE).
    """
    top = jax.nn.softplus(jnp.asarray(log_snr_max, u.dtype))
    bottom = jax.nn.softplus(jnp.asarray(log_snr_min, u.dtype))
    height = (1.0 - u) * top + u * bottom
    # log expm1(h) = h + log(1 − e^{−h}) overflows for no h.
    log_snr = height + jnp.log(-jnp.expm1(-height))
    return NoiseLevels(log_snr, (top - bottom) / jax.nn.sigmoid(log_snr))
