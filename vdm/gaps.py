"""The gaps between the bound and the entropy, one by one.

For discrete data, any denoiser and any decoder p(x|z_0),

    E[−VLB] = H(x) + KL(q(z_1) ‖ N(0, I)) + ½ ∫ E‖ε̂ − ε*‖² dλ + E KL(q(x|z_0) ‖ p(x|z_0))

with ε* = E[ε|z]; for real data H is the differential entropy. All three gaps are
positive or zero: a fixed q loses nothing in principle, and they say which part of a model causes
the loss. They are known where the data's law is: tables, mixtures, Gaussians. A finite number of
steps T adds a fourth, `steps_law`.

Each function is a one-sample estimate per example at given noise, as in `vdm.losses`; their
means over the data and the noise are the gaps, while single values may be negative.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from vdm import draws
from vdm.diffusion import q_sample
from vdm.likelihoods import Likelihood
from vdm.losses import AnyArray, EpsFn, sum_dims
from vdm.noise_levels import NoiseLevels

# The log-density of z_λ in nats: (z, λ) → [b].
DensityFn = Callable[[Float[Array, " b *d"], Float[Array, "..."]], Float[Array, " b"]]


class Law(NamedTuple):
    """What has to be known of the data: ε* = E[ε|z], log q(z_λ) and log P(x) of raw x, [b]."""

    eps_fn: EpsFn
    log_density: DensityFn
    log_prob: Callable[[Num[Array, " b *d"]], Float[Array, " b"]]


class Gaps(NamedTuple):
    """The three gaps between −VLB and the entropy, in nats per example, each [b]."""

    prior: Float[Array, " b"]
    denoiser: Float[Array, " b"]
    decoder: Float[Array, " b"]

    @property
    def total(self) -> Float[Array, " b"]:
        """What the bound loses: the mean of −VLB less the entropy."""
        return self.prior + self.denoiser + self.decoder


def prior_gap(
    x: Float[Array, " b *d"],
    eps: Float[Array, " b *d"],
    log_snr_1: Float[Array, "..."],
    log_density: DensityFn,
) -> Float[Array, " b"]:
    """Return log q(z_1) − log N(z_1; 0, I) at z_1 = α x + σ ε: its mean is KL(q(z_1) ‖ N(0, I)).

    x is encoded data; `log_density(z, log_snr)` is the log-density of q(z_λ). In nats.
    """
    z_1 = q_sample(x, eps, log_snr_1)
    return log_density(z_1, log_snr_1) - _log_normal(z_1)


def denoiser_gap(
    x: Float[Array, " b *d"],
    levels: NoiseLevels,
    eps: Float[Array, " b *d"],
    eps_fn: EpsFn,
    exact_eps_fn: EpsFn,
) -> Float[Array, " b"]:
    """Return ½ ‖ε̂ − ε*‖²/p(λ) at levels of density p: its mean is ½ ∫ E‖ε̂ − ε*‖² dλ.

    x is encoded data. It is what the diffusion term with ε̂ exceeds that with ε* by, and
    varies far less than the difference of the two. Of any two denoisers it is the
    squared distance on the data. In nats.
    """
    z = q_sample(x, eps, levels.log_snr)
    apart = eps_fn(z, levels.log_snr) - exact_eps_fn(z, levels.log_snr)
    return 0.5 * levels.inverse_density * sum_dims(jnp.square(apart))


def decoder_gap(
    x_raw: Num[Array, " b *d"],
    eps_0: Float[Array, " b *d"],
    log_snr_0: Float[Array, "..."],
    likelihood: Likelihood,
    log_density: DensityFn,
    log_prob: Float[Array, " b"],
) -> Float[Array, " b"]:
    """Return log q(x|z_0) − log p(x|z_0): its mean is E KL(q(x|z_0) ‖ p(x|z_0)).

    By Bayes' rule log q(x|z_0) = log P(x) + log q(z_0|x) − log q(z_0), where `log_prob` holds
    log P(x), or the log-density of real-valued data, for each example; x_raw is not yet
    encoded. In nats. At high λ_0 it is a small difference of large numbers: the densities
    are of the order of D λ_0/2, and float32 keeps seven digits of them.
    """
    x = likelihood.encode(x_raw)
    z_0 = q_sample(x, eps_0, log_snr_0)
    # log q(z_0|x) is the density of the noise that was drawn, at the scale σ.
    num_dims = math.prod(x.shape[1:])
    log_conditional = _log_normal(eps_0) - 0.5 * num_dims * jax.nn.log_sigmoid(-log_snr_0)
    log_posterior = log_prob + log_conditional - log_density(z_0, log_snr_0)
    return log_posterior - likelihood.log_prob(x_raw, z_0, log_snr_0)


def estimate(
    key: Key[Array, "..."],
    x: Num[Array, " b *d"],
    levels: NoiseLevels,
    eps_fn: EpsFn,
    law: Law,
    likelihood: Likelihood,
    *,
    log_snr_max: Float[Array, ""] | float,
    log_snr_min: Float[Array, ""] | float,
) -> Gaps:
    """Return one draw of each gap for every example, unbiased for x drawn from the law.

    x is not yet encoded; `levels` are drawn between the two ends by `vdm.noise_levels`; `key`
    is one key or one key per example. Raises TypeError or ValueError for keys that do not
    fit the batch, ValueError for ends in the wrong order (where they are known).
    """
    draws.check_key(key, x.shape[0])
    if not isinstance(log_snr_max - log_snr_min, jax.core.Tracer) and log_snr_max <= log_snr_min:
        raise ValueError(
            f"log_snr_max must exceed log_snr_min: got {log_snr_max} and {log_snr_min}"
        )
    encoded = likelihood.encode(x)
    high, low = (jnp.asarray(end, encoded.dtype) for end in (log_snr_max, log_snr_min))
    eps_1, eps, eps_0 = (draws.normal(part, x.shape, encoded.dtype) for part in draws.split(key, 3))
    return Gaps(
        prior=prior_gap(encoded, eps_1, low, law.log_density),
        denoiser=denoiser_gap(encoded, levels, eps, eps_fn, law.eps_fn),
        decoder=decoder_gap(x, eps_0, high, likelihood, law.log_density, law.log_prob(x)),
    )


def steps_law(
    log_snr_max: Float[Array, ""] | float,
    log_snr_min: Float[Array, ""] | float,
    bound_inf: AnyArray | float,
    error_at_min: AnyArray | float,
    error_at_max: AnyArray | float,
    num_steps: int,
) -> AnyArray | float:
    """Return what T steps cost over T = ∞ to leading order, for λ linear in t.

    L_T − L_∞ = (Δλ/4T) (2 L_∞ + m(λ_min) − m(λ_max)) + O(1/T²), where L is the diffusion
    term, `bound_inf` at T = ∞, Δλ = λ_max − λ_min and m(λ) = E‖ε − ε̂‖² at that end. The first
    part comes from expm1(h) = h + h²/2 + …, h = Δλ/T, the second from the Riemann sum over
    the noisier end of each step. In the unit of `bound_inf` and the errors: nats per example, or
    their means. Raises ValueError if num_steps < 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1: got {num_steps}")
    step = (log_snr_max - log_snr_min) / num_steps
    return 0.25 * step * (2.0 * bound_inf + error_at_min - error_at_max)


def _log_normal(z: Float[Array, " b *d"]) -> Float[Array, " b"]:
    """Return log N(z; 0, I)."""
    num_dims = math.prod(z.shape[1:])
    return -0.5 * (sum_dims(jnp.square(z)) + num_dims * math.log(2.0 * math.pi))
