"""The three terms of the variational bound, as functions of functions.

    −log p(x) ≤ −VLB(x) = prior + reconstruction + diffusion        (VDM, eq. 11)

Each term is in nats per example, summed over the data's dimensions; `bits_per_dim`
is the only place where units change. `log_snr_fn` maps times to λ and
`eps_fn(z, log_snr)` is any denoiser: no function here knows about networks.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from vdm.diffusion import expand, q_sample
from vdm.likelihoods import Likelihood
from vdm.noise_levels import NoiseLevels, from_times
from vdm.schedules.base import LogSnrFn
from vdm.sets import Mask, wiped

AnyArray = Float[Array | np.ndarray, "*b"]
EpsFn = Callable[[Float[Array, " b *d"], Float[Array, "..."]], Float[Array, " b *d"]]


class VLB(NamedTuple):
    """The three terms of −VLB(x) in nats per example, each of shape [b]; lower is better."""

    prior: Float[Array, " b"]
    reconstruction: Float[Array, " b"]
    diffusion: Float[Array, " b"]

    @property
    def total(self) -> Float[Array, "*b"]:
        """The negative variational bound, an upper bound of −log p(x) in expectation."""
        return self.prior + self.reconstruction + self.diffusion


def sum_dims(values: Float[Array, " b *d"]) -> Float[Array, " b"]:
    """Sum over every axis but the first."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def prior_kl(
    x: Float[Array, " b *d"], log_snr_1: Float[Array, "..."], mask: Mask | None = None
) -> Float[Array, " b"]:
    """Return KL(q(z_1|x) ‖ N(0, I)) = ½ Σ [sigmoid(λ_1)(x² − 1) + softplus(λ_1)], in nats.

    With a mask of sets (`vdm.sets`) the sum is over the points that are there, here and below.
    """
    log_snr_1 = expand(log_snr_1, x)
    each = jax.nn.sigmoid(log_snr_1) * (jnp.square(x) - 1.0) + jax.nn.softplus(log_snr_1)
    return 0.5 * sum_dims(wiped(each, mask))


def reconstruction(
    x_raw: Num[Array, " b *d"],
    eps_0: Float[Array, " b *d"],
    log_snr_0: Float[Array, "..."],
    likelihood: Likelihood,
    mask: Mask | None = None,
) -> Float[Array, " b"]:
    """Return −log p(x|z_0) at z_0 = α_0 x + σ_0 ε_0, in nats; x_raw is not yet encoded."""
    z_0 = q_sample(likelihood.encode(x_raw), eps_0, log_snr_0)
    if mask is None:
        return -likelihood.log_prob(x_raw, z_0, log_snr_0)
    # Every point is an example to the likelihood.
    x_raw, z_0 = (part.reshape(-1, *part.shape[2:]) for part in (x_raw, z_0))
    each = -likelihood.log_prob(x_raw, z_0, log_snr_0)
    return sum_dims(wiped(each.reshape(mask.shape), mask))


def noise_error(
    x: Float[Array, " b *d"],
    eps: Float[Array, " b *d"],
    log_snr: Float[Array, "..."],
    eps_fn: EpsFn,
) -> Float[Array, " b"]:
    """Return ‖ε − ε̂(z_λ, λ)‖² at z_λ = α x + σ ε, the quantity every loss is a weight of."""
    eps_hat = eps_fn(q_sample(x, eps, log_snr), log_snr)
    return sum_dims(jnp.square(eps - eps_hat))


def diffusion_loss(
    x: Float[Array, " b *d"],
    t: Float[Array, " b"],
    eps: Float[Array, " b *d"],
    log_snr_fn: LogSnrFn,
    eps_fn: EpsFn,
) -> Float[Array, " b"]:
    """Return ½ (−dλ/dt) ‖ε − ε̂‖² at the given times, in nats.

    Its mean over t ~ U[0, 1] and ε ~ N(0, I) is the diffusion term of the
    continuous-time bound, T = ∞ (VDM, eq. 17), whatever the shape of λ(t).
    """
    return diffusion_loss_at(x, from_times(log_snr_fn, t), eps, eps_fn)


def diffusion_loss_at(
    x: Float[Array, " b *d"], levels: NoiseLevels, eps: Float[Array, " b *d"], eps_fn: EpsFn
) -> Float[Array, " b"]:
    """Return ½ ‖ε − ε̂‖²/p(λ) at noise levels drawn with density p, in nats.

    Its mean is the diffusion term of the continuous-time bound for every p that is
    positive between the ends. Times a weighting w(λ) it is the weighted loss.
    """
    return 0.5 * levels.inverse_density * noise_error(x, eps, levels.log_snr, eps_fn)


def diffusion_loss_steps(
    x: Float[Array, " b *d"],
    i: Int[Array, " b"],
    eps: Float[Array, " b *d"],
    log_snr_fn: LogSnrFn,
    eps_fn: EpsFn,
    *,
    num_steps: int | Int[Array, ""],
) -> Float[Array, " b"]:
    """Return ½ T (SNR_s/SNR_t − 1) ‖ε − ε̂‖² with t = i/T, s = (i − 1)/T, in nats.

    Its mean over i uniform on 1..T and ε ~ N(0, I) is the diffusion term of the bound
    with T = num_steps steps (VDM, eq. 14). T may be traced; where it is a Python number,
    ValueError is raised if num_steps < 1.
    """
    if isinstance(num_steps, int) and num_steps < 1:
        raise ValueError(f"num_steps must be at least 1: got {num_steps}")
    log_snr_t, log_snr_s = log_snr_fn(i / num_steps), log_snr_fn((i - 1) / num_steps)
    weight = 0.5 * num_steps * jnp.expm1(log_snr_s - log_snr_t)
    return weight * noise_error(x, eps, log_snr_t, eps_fn)


def step_of(times: Float[Array, " b"], num_steps: int | Int[Array, ""]) -> Int[Array, " b"]:
    """Return the step ⌈tT⌉ of T = num_steps that a time lies in, 1 at t = 0."""
    return jnp.clip(jnp.ceil(times * num_steps).astype(int), 1, num_steps)


def bits_per_dim(nats: AnyArray, num_dims: int | Int[Array | np.ndarray, "..."]) -> AnyArray:
    """Convert nats per example into bits per dimension: nats / (num_dims · ln 2).

    Examples of different sizes have a number of dimensions each.
    """
    return nats / (num_dims * math.log(2.0))
