"""The profile of the bound: −log p(x|θ) at some θ, with errors of the differences."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vdm.condition import Condition
from vdm.few_steps.chain import Chain
from vdm.inference.bound import Data, bounds, check, check_samples
from vdm.model import VDM, Params

AnyArray = Array | np.ndarray


class Profile(NamedTuple):
    """−VLB(x|θ_j) of n examples at m conditions, in nats, and what is known of its errors.

    `sets` [n, r, m] are the means of r independent sets of draws, each of which all conditions
    share; `mean` [n, m] is their mean, an estimate of −log p(x|θ_j) from above, and `sem` its
    standard error. `reference` [n] is the condition that others are compared with, by default the
    one with the lowest mean; `excess` [n, m] is the mean less that of the reference, and
    `excess_sem` the standard error of this difference, from the sets' own differences. Of r = 8
    sets a standard error is itself known to about a quarter, as of 8 normal numbers.
    """

    sets: Float[AnyArray, " n r m"]
    mean: Float[AnyArray, " n m"]
    sem: Float[AnyArray, " n m"]
    reference: Int[AnyArray, " n"]
    excess: Float[AnyArray, " n m"]
    excess_sem: Float[AnyArray, " n m"]


def profile(
    model: VDM,
    params: Params,
    x: Data,
    conds: Condition,
    key: Key[Array, "..."],
    *,
    num_samples: int = 128,
    num_sets: int = 8,
    num_steps: int | None = None,
    chain: Chain | None = None,
    reference: int | None = None,
    batch_size: int = 256,
) -> Profile:
    """Return −VLB(x_i|θ_j) of n examples at m conditions, with the same noise for every condition.

    x is [n, *d] as it comes, not encoded (one example is x[None]); `conds` are the θ_j, [m, ...],
    in the unit that the network is given: vectors [m, c], classes [m], fields, or `Conditions`.
    Every example is looked at with every condition, at `num_samples` draws: `num_sets` independent
    sets of evenly spaced times, each with a pair of noises ±ε. The n · m · num_samples evaluations
    of the network are done `batch_size` at a time, in one compiled function for all θ. `num_steps`
    is T (None is T = ∞) and `chain` takes its place, as in `VDM.vlb`; `key` is one key or one for
    each example. `reference` is the number of the condition to compare with, by default the best.

    Only the diffusion term depends on θ. So does the bound's gap where the network is not equally
    good at every θ: see `dependence`. Raises TypeError for data that the likelihood does not model,
    for conditions of another type than the network's and for a key that is not typed; ValueError
    for no examples, keys that do not fit, other conditions than the network takes, num_steps < 1,
    a chain beside num_steps, fewer than two sets, num_samples that is not a multiple of 2 num_sets,
    and a reference that is not one of the conditions.
    """
    num_levels = check_samples(num_samples, num_sets, 2, batch_size)
    x, keys, conds = check(model, x, key, conds, num_steps, chain)
    sets = bounds(
        model,
        params,
        keys,
        x,
        conds,
        num_steps,
        chain,
        num_sets=num_sets,
        num_levels=num_levels,
        batch_size=batch_size,
    )
    return of_sets(sets, reference)


def joint(profile: Profile, reference: int | None = None) -> Profile:
    """Return the profile of all examples together as observations of one θ, n = 1, in nats.

    log p(x_1 … x_n|θ) = Σ_i log p(x_i|θ) for observations that are independent given θ. The noise
    of examples is independent, so that the errors are those of the sum. Raises ValueError for a
    reference that is not one of the conditions.
    """
    return of_sets(jnp.sum(jnp.asarray(profile.sets), axis=0, keepdims=True), reference)


def posterior(
    profile: Profile, log_prior: Float[AnyArray, " m"] | None = None
) -> Float[Array, " n m"]:
    """Return the posterior weights of the m conditions for every example, which sum to 1.

    w_j ∝ p(θ_j) exp(VLB(x|θ_j)), with the logarithm of the prior in nats up to a constant, uniform
    by default. On a grid of a continuous θ the prior is the mass of each point's cell. Trust the
    weights only where `excess_sem` is small against 1 nat and the bound's gap is that of all θ.
    Raises ValueError for a prior of another length, or one that is NaN or +∞ or nowhere positive.
    """
    mean = jnp.asarray(profile.mean)
    prior = checked_prior(log_prior, mean.shape[1], mean.dtype)
    return jax.nn.softmax(prior[None] - mean, axis=1)


def of_sets(sets: Float[Array, " n r m"], reference: int | None) -> Profile:
    """Return the profile of the means of independent sets; raises ValueError for the reference."""
    num = sets.shape[2]
    if reference is not None and not 0 <= reference < num:
        raise ValueError(f"reference must be from 0 to {num - 1}: got {reference}")
    mean = jnp.mean(sets, axis=1)
    best = jnp.argmin(mean, axis=1)
    best = best if reference is None else jnp.full_like(best, reference)
    apart = sets - jnp.take_along_axis(sets, best[:, None, None], axis=2)
    return Profile(sets, mean, _error(sets), best, jnp.mean(apart, axis=1), _error(apart))


def checked_prior(
    log_prior: Float[AnyArray, " m"] | None, num: int, dtype: jnp.dtype
) -> Float[Array, " m"]:
    """Return the prior's logarithms, zero for None, or raise what `posterior` does."""
    if log_prior is None:
        return jnp.zeros(num, dtype)
    prior = np.asarray(log_prior)
    if prior.shape != (num,):
        raise ValueError(
            f"log_prior must have one entry for each of {num} conditions: got shape {prior.shape}"
        )
    if np.any(np.isnan(prior)) or np.any(prior == np.inf) or not np.any(np.isfinite(prior)):
        raise ValueError(f"log_prior must be finite somewhere, and never NaN or +inf: got {prior}")
    return jnp.asarray(prior, dtype)


def _error(sets: Float[Array, " n r m"]) -> Float[Array, " n m"]:
    return jnp.std(sets, axis=1, ddof=1) / math.sqrt(sets.shape[1])
