"""One call of the denoiser a step: the transition of the bound, and DDIM.

Both replace x in q(z_s | z_t, x) by x̂. They differ in the noise of that transition: all
of it, a share of it, or none. With x itself every share has the marginals of the process
(Song, Meng & Ermon 2021, section 3.1); with x̂ it has them in the limit of small steps.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.diffusion import alpha, convert, posterior, sigma
from vdm.losses import EpsFn


@dataclasses.dataclass(frozen=True)
class Ancestral:
    """Draw from p(z_s|z_t); see `ancestral`."""

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
        x_hat = convert(eps_fn(z_t, log_snr_t), z_t, log_snr_t, source="eps", target="x")
        mean, std = posterior(z_t, x_hat, log_snr_t, log_snr_s)
        return mean + std * noise, carry


@dataclasses.dataclass(frozen=True)
class DDIM:
    """Follow ε̂, with a share of fresh noise; see `ddim`."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(
                f"eta must be between 0 (deterministic) and 1 (ancestral): got {self.eta}"
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
        eps_hat = eps_fn(z_t, log_snr_t)
        if self.eta == 0.0:  # known before compilation: no noise is drawn at all
            return follow(z_t, eps_hat, log_snr_t, log_snr_s), carry
        x_hat = convert(eps_hat, z_t, log_snr_t, source="eps", target="x")
        kept = jnp.exp(log_snr_t - log_snr_s)  # 1 − c
        direction = jnp.sqrt((1.0 - self.eta**2) + self.eta**2 * kept)  # √(1 − η² c)
        fresh = self.eta * jnp.sqrt(-jnp.expm1(log_snr_t - log_snr_s))  # η √c
        mean = alpha(log_snr_s) * x_hat + sigma(log_snr_s) * direction * eps_hat
        return mean + sigma(log_snr_s) * fresh * noise, carry


def follow(
    z_t: Float[Array, " b *d"],
    eps_hat: Float[Array, " b *d"],
    log_snr_t: Float[Array, ""],
    log_snr_s: Float[Array, ""],
) -> Float[Array, " b *d"]:
    """Return z_s = α_s x̂ + σ_s ε̂, z_t with its ε held and its noise level changed.

    With ς = σ/α this is z_s/α_s = z_t/α_t + (ς_s − ς_t) ε̂: Euler's step of the
    probability-flow ODE d(z/α)/dς = ε̂ (Song, Meng & Ermon 2021, eq. 13 and 14).
    """
    x_hat = convert(eps_hat, z_t, log_snr_t, source="eps", target="x")
    return alpha(log_snr_s) * x_hat + sigma(log_snr_s) * eps_hat


def ancestral() -> Ancestral:
    """Return the sampler whose transitions are those of the bound, q(z_s | z_t, x = x̂).

    Its law is exactly the generative model p that the T-step bound is a bound of
    (VDM, appendix A). No transition adds less noise than the model says, the last
    one included.
    """
    return Ancestral()


def ddim(eta: float = 0.0) -> DDIM:
    """Return the sampler z_s = α_s x̂ + σ_s [√(1 − η² c) ε̂ + η √c ε], c = 1 − SNR_t/SNR_s.

    It is DDIM (Song, Meng & Ermon 2021, eq. 12, with the noise of eq. 16) in λ: eta = 1
    is the ancestral step and eta = 0 is deterministic, a first-order solver of the
    probability-flow ODE. Raises ValueError for an eta outside [0, 1].
    """
    return DDIM(eta)
