"""DPM-Solver++(2M): second order from one call of the denoiser a step, by remembering one.

Lu et al. (2022, DPM-Solver++) solve the probability-flow ODE with its linear part exact
and x̂ extrapolated from the last two calls. Their log(α/σ) is half our λ.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.diffusion import alpha, convert, sigma
from vdm.losses import EpsFn


class Last(NamedTuple):
    """The last x̂, and one over the last step's length in λ/2: 0 where there was none."""

    x_hat: Float[Array, " b *d"]
    inverse_length: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class DPMpp2M:
    """Extrapolate x̂ along λ; see `dpmpp_2m`."""

    def init(self, z: Float[Array, " b *d"]) -> Last:
        return Last(jnp.zeros_like(z), jnp.zeros((), z.dtype))

    def step(
        self,
        eps_fn: EpsFn,
        z_t: Float[Array, " b *d"],
        carry: Last,
        noise: Float[Array, " b *d"],
        log_snr_t: Float[Array, ""],
        log_snr_s: Float[Array, ""],
    ) -> tuple[Float[Array, " b *d"], Last]:
        length = 0.5 * (log_snr_s - log_snr_t)
        x_hat = convert(eps_fn(z_t, log_snr_t), z_t, log_snr_t, source="eps", target="x")
        # 1/(2r) with r the last length over this one. It is 0 before the first step, which
        # is then of first order without a branch.
        ahead = 0.5 * length * carry.inverse_length
        x_middle = x_hat + ahead * (x_hat - carry.x_hat)
        # Lu et al. 2022, algorithm 2.
        scale = sigma(log_snr_s) / sigma(log_snr_t)
        z_s = scale * z_t - alpha(log_snr_s) * jnp.expm1(-length) * x_middle
        return z_s, Last(x_hat, 1.0 / length)


def dpmpp_2m() -> DPMpp2M:
    """Return DPM-Solver++(2M), a deterministic sampler of second order on any grid.

    With h = (λ_s − λ_t)/2 and r the last h over this one,
    z_s = (σ_s/σ_t) z_t + α_s (1 − e^{−h}) [(1 + 1/2r) x̂_t − (1/2r) x̂_last]
    (Lu et al. 2022, DPM-Solver++, algorithm 2, data prediction). The first step, which
    has nothing to remember, takes x̂_t alone and is DDIM's.
    """
    return DPMpp2M()
