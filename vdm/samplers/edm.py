"""Heun's method on the probability-flow ODE, with noise put back between the steps.

Karras, Aittala, Aila & Laine (2022, EDM) solve d(z/α)/dς = ε̂ in ς = σ/α = e^{−λ/2}. Two
calls of the denoiser a step make it second order; the noise that is put back before a
step lets later steps correct the errors of earlier ones.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.diffusion import alpha, sigma
from vdm.losses import EpsFn
from vdm.samplers.first_order import follow

MOST_CHURN = math.sqrt(2.0) - 1.0  # as much new noise as there is already


@dataclasses.dataclass(frozen=True)
class Heun:
    """Take the mean of ε̂ at both ends of the step; see `heun`."""

    churn: float = 0.0
    noise_std: float = 1.0
    churn_min: float = 0.0
    churn_max: float = math.inf

    def __post_init__(self) -> None:
        if not 0.0 <= self.churn <= MOST_CHURN:
            raise ValueError(
                "churn is γ of one step (EDM's S_churn over the number of steps) and lies in "
                f"[0, √2 − 1]: got {self.churn}"
            )
        if not (math.isfinite(self.noise_std) and self.noise_std > 0.0):
            raise ValueError(f"noise_std must be positive and finite: got {self.noise_std}")
        if not 0.0 <= self.churn_min <= self.churn_max:
            raise ValueError(
                "churn_min and churn_max bound σ/α and must be in order: got "
                f"churn_min={self.churn_min}, churn_max={self.churn_max}"
            )

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
        if self.churn > 0.0:  # known before compilation: else no noise is drawn at all
            z_t, log_snr_t = self._put_noise_back(z_t, noise, log_snr_t)
        slope = eps_fn(z_t, log_snr_t)
        z_s = follow(z_t, slope, log_snr_t, log_snr_s)
        # EDM leaves the correction out where ς_s = 0; a grid of finite λ never gets there.
        mean_slope = 0.5 * (slope + eps_fn(z_s, log_snr_s))
        return follow(z_t, mean_slope, log_snr_t, log_snr_s), carry

    def _put_noise_back(
        self, z: Float[Array, " b *d"], noise: Float[Array, " b *d"], log_snr: Float[Array, ""]
    ) -> tuple[Float[Array, " b *d"], Float[Array, ""]]:
        """EDM, algorithm 2, lines 4 to 6: raise ς to ς(1 + γ), variance by ς² γ(2 + γ)."""
        level = jnp.exp(-0.5 * log_snr)
        inside = (level >= self.churn_min) & (level <= self.churn_max)
        gamma = jnp.where(inside, self.churn, 0.0).astype(log_snr.dtype)
        raised = log_snr - 2.0 * jnp.log1p(gamma)
        fresh = sigma(log_snr) * self.noise_std * jnp.sqrt(gamma * (2.0 + gamma))
        return alpha(raised) / alpha(log_snr) * (z + fresh * noise), raised


def heun(
    churn: float = 0.0,
    noise_std: float = 1.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
) -> Heun:
    """Return EDM's second-order sampler, deterministic unless `churn` is given.

    In the variables z/α and ς = σ/α = e^{−λ/2} one step is Heun's (Karras et al. 2022,
    algorithm 2): z_s/α_s = z_t/α_t + (ς_s − ς_t) ½ [ε̂(z_t, λ_t) + ε̂(z', λ_s)] with z'
    from Euler's step, two calls of the denoiser. The correction is made at the last step too.

    `churn` is γ itself, per step, not EDM's S_churn for a whole chain: for that pass
    min(S_churn/num_steps, √2 − 1). Where churn_min ≤ ς ≤ churn_max, noise of standard
    deviation noise_std · √((1 + γ)² − 1) ς is added before the step, which raises ς to
    (1 + γ) ς. A first step inside that interval asks the denoiser for a level noisier than
    the grid's first: choose churn_max below it where the denoiser does not know that level.
    Raises ValueError for a churn outside [0, √2 − 1], a noise_std that is not positive and
    finite, or bounds that are negative or not in order.
    """
    return Heun(churn, noise_std, churn_min, churn_max)
