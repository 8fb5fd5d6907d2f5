"""The ancestral sampler of a chain: it draws from p(z_s|z_t) with the chain's own variance."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.diffusion import convert, posterior
from vdm.few_steps.chain import Chain, spread
from vdm.losses import EpsFn


@dataclasses.dataclass(frozen=True, eq=False)
class Ancestral:
    """Draw from the steps of a chain, along its own levels; a `vdm.samplers.Sampler`.

    With v the variance of x given z_t, every step adds the noise that the law of z_s given z_t
    has: the optimal reverse variance (Bao et al. 2022, Analytic-DPM, theorem 1).
    """

    chain: Chain

    def init(self, z: Float[Array, " b *d"]) -> tuple[()]:
        return ()

    def step(
        self,
        eps_fn: EpsFn,
        z_t: Float[Array, " b *d"],
        carry: tuple[()],
        noise: Float[Array, " b *d"],
        log_snr_t: Float[Array, ""],
        log_snr_s: Float[Array, ""],
    ) -> tuple[Float[Array, " b *d"], tuple[()]]:
        eps_hat = eps_fn(z_t, log_snr_t)
        x_hat = convert(eps_hat, z_t, log_snr_t, source="eps", target="x")
        mean, std = posterior(z_t, x_hat, log_snr_t, log_snr_s)
        v = self.chain.v(z_t, eps_hat, log_snr_t)
        if v is not None:
            std = std * jnp.sqrt(spread(v, log_snr_t, log_snr_s))
        return mean + std * noise, carry
