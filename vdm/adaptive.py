"""A histogram of the loss over λ that learns which noise levels to draw (VDM++-style).

It keeps running first and second moments of ‖ε − ε̂‖² in even bins of λ between the ends,
and draws λ with the density that makes the batch estimate of ½ ∫ w E‖ε − ε̂‖² dλ vary least:

    independent positions   p ∝ w √E[‖ε − ε̂‖⁴ | λ]
    stratified positions    p ∝ w √Var[‖ε − ε̂‖² | λ]      (Neyman's allocation)

plus a uniform floor, so that no weight 1/p is large. The state is explicit: it is
updated by a pure function, and saved with everything else. It knows nothing of w, so the
histogram of a weighted training also serves the evaluation of the bound.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.noise_levels import NoiseLevels


class Histogram(NamedTuple):
    """Running sums over bins of λ, from λ_max to λ_min; `mass` makes them averages.

    `seen` is how many errors each bin was given.
    """

    seen: Float[Array, " n"]
    mass: Float[Array, " n"]
    first: Float[Array, " n"]
    second: Float[Array, " n"]


def init(num_bins: int = 100) -> Histogram:
    """Return an empty histogram, which draws λ uniformly; raises ValueError for no bin."""
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1: got {num_bins}")
    zeros = jnp.zeros((num_bins,), float)
    # Buffers of their own: a donated state must not hold one of them twice.
    return Histogram(*(jnp.copy(zeros) for _ in Histogram._fields))


def update(
    state: Histogram,
    log_snr: Float[Array, " b"],
    error: Float[Array, " b"],
    log_snr_max: Float[Array, ""] | float,
    log_snr_min: Float[Array, ""] | float,
    *,
    decay: float = 0.99,
) -> Histogram:
    """Return the histogram with the errors ‖ε − ε̂‖² of a batch added to its averages.

    A bin remembers about 1/(1 − decay) errors of its own, however often it is drawn.
    Errors that are not finite are left out.
    """
    n = state.mass.shape[0]
    position = (log_snr_max - log_snr) / (log_snr_max - log_snr_min)
    index = jnp.clip(jnp.floor(position * n).astype(int), 0, n - 1)
    good = jnp.isfinite(error)
    error = jnp.where(good, error, 0.0)
    count = jax.ops.segment_sum(good.astype(error.dtype), index, n)
    kept = decay**count
    share = jnp.where(count > 0, (1.0 - kept) / jnp.maximum(count, 1.0), 0.0)
    return Histogram(
        seen=state.seen + count,
        mass=kept * state.mass + share * count,
        first=kept * state.first + share * jax.ops.segment_sum(error, index, n),
        second=kept * state.second + share * jax.ops.segment_sum(jnp.square(error), index, n),
    )


def probabilities(
    state: Histogram,
    *,
    stratified: bool = True,
    floor: float = 0.02,
    weights: Float[Array, " n"] | None = None,
) -> Float[Array, " n"]:
    """Return the probability of every bin, given the weight w of each (None: equal weights).

    A bin without errors counts as an average one.
    """
    met = state.seen > 0
    mass = jnp.where(met, state.mass, 1.0)
    first, second = state.first / mass, state.second / mass
    # The variance of one or two errors is no evidence that it is zero: what is subtracted grows
    # with their number, or a bin once seen would hardly be seen again.
    known = jnp.maximum(1.0 - 2.0 / jnp.maximum(state.seen, 1.0), 0.0) * stratified
    spread = jnp.sqrt(jnp.maximum(second - known * jnp.square(first), 0.0))
    typical = jnp.sum(jnp.where(met, spread, 0.0)) / jnp.maximum(jnp.sum(met), 1)
    # Before the first error every bin is typical, and w alone decides.
    spread = jnp.where(met, spread, jnp.where(jnp.any(met), typical, 1.0))
    spread = spread if weights is None else spread * weights
    total = jnp.sum(spread)
    even = 1.0 / spread.shape[0]
    share = jnp.where(total > 0, spread / jnp.where(total > 0, total, 1.0), even)
    return (1.0 - floor) * share + floor * even


def levels(
    state: Histogram,
    u: Float[Array, " b"],
    log_snr_max: Float[Array, ""] | float,
    log_snr_min: Float[Array, ""] | float,
    *,
    stratified: bool = True,
    floor: float = 0.02,
    weighting: Callable[[Float[Array, " n"]], Float[Array, " n"]] | None = None,
) -> NoiseLevels:
    """Return noise levels drawn from the histogram, from uniform positions in [0, 1).

    `stratified` says how the positions are drawn, and so which density is best; `weighting`
    is the w(λ) of the loss, None for the bound. Within a bin λ is uniform, so the density is
    exact and the estimate unbiased whatever the histogram holds.
    """
    n = state.mass.shape[0]
    centre = (jnp.arange(n) + 0.5) / n
    weights = None
    if weighting is not None:
        weights = weighting((1.0 - centre) * log_snr_max + centre * log_snr_min)
    probs = probabilities(state, stratified=stratified, floor=floor, weights=weights)
    edges = jnp.concatenate([jnp.zeros((1,), probs.dtype), jnp.cumsum(probs)])
    edges = edges / edges[-1]
    index = jnp.clip(jnp.searchsorted(edges, u, side="right") - 1, 0, n - 1)
    height = edges[index + 1] - edges[index]
    position = (index + jnp.clip((u - edges[index]) / height, 0.0, 1.0)) / n
    log_snr = (1.0 - position) * log_snr_max + position * log_snr_min
    return NoiseLevels(log_snr, (log_snr_max - log_snr_min) / (n * height))
