"""Sampling from a DDPM chain, with either of its reverse variances."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm import samplers
from vdm.ddpm.chain import Chain, check_variance
from vdm.diffusion import convert, expand, posterior, sigma
from vdm.losses import EpsFn


@dataclasses.dataclass(frozen=True)
class Reverse:
    """Draw from p(x_{n−1}|x_n); see `reverse`."""

    variance: str = "posterior"

    def __post_init__(self) -> None:
        check_variance(self.variance)

    def init(self, z: Float[Array, " b *d"]) -> tuple[()]:
        del z
        return ()

    def step(
        self,
        eps_fn: EpsFn,
        z_t: Float[Array, " b *d"],
        carry: tuple[()],
        noise: Float[Array, " b *d"],
        log_snr_t: Float[Array, "..."],
        log_snr_s: Float[Array, "..."],
    ) -> tuple[Float[Array, " b *d"], tuple[()]]:
        x_hat = convert(eps_fn(z_t, log_snr_t), z_t, log_snr_t, source="eps", target="x")
        mean, std = posterior(z_t, x_hat, log_snr_t, log_snr_s)
        if self.variance == "beta":
            # With c = 1 − SNR_t/SNR_s: β̃ = c σ_s², and β = c σ_t².
            std = std * expand(sigma(log_snr_t) / sigma(log_snr_s), z_t)
        return mean + std * noise, carry


def reverse(variance: str = "posterior") -> Reverse:
    """Return the sampler of a DDPM chain, N(μ_θ, σ_n²) (Ho et al. 2020, algorithm 2).

    σ_n² is β̃_n for "posterior", which makes it the ancestral step of the bound, and β_n for
    "beta". A chain's grid is `log_snrs` from last to first; any other is a chain of its own.
    Raises ValueError for another variance.
    """
    return Reverse(variance)


def sample(
    key: Key[Array, "..."],
    chain: Chain,
    eps_fn: EpsFn,
    shape: tuple[int, ...],
    *,
    variance: str = "posterior",
) -> Float[Array, " b *d"]:
    """Return data of the given shape, batch axis first, still encoded (algorithm 2).

    From x_N ~ N(0, I) by N − 1 steps of `reverse` to x_1, and from there to the mean of the
    decoder, μ_θ(x_1, 1) = x̂(x_1), without noise. N calls of `eps_fn`; `chain.strided(k)` needs
    k. `key` is one key or one per example. Raises ValueError for an unknown variance, and as
    `samplers.sample` does.
    """
    log_snrs = jnp.asarray(chain.log_snrs[::-1])
    x_1 = samplers.sample(key, eps_fn, log_snrs, shape, sampler=reverse(variance))
    return convert(eps_fn(x_1, log_snrs[-1]), x_1, log_snrs[-1], source="eps", target="x")
