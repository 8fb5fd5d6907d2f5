"""L_0 of a DDPM chain: a Gaussian around μ_θ(x_1, 1), summed up over the data's bins."""

import dataclasses
import math

import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float, Integer

from vdm.diffusion import expand


@dataclasses.dataclass(frozen=True)
class DiscretisedGaussian:
    """A Gaussian's mass on each of a number of levels; see `discretised_gaussian`."""

    levels: int = 256
    edge: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.levels, int) and self.levels >= 2):
            raise ValueError(f"levels must be a whole number of at least 2: got {self.levels!r}")
        if not (math.isfinite(self.edge) and self.edge > 0):
            raise ValueError(f"edge must be positive and finite: got {self.edge}")

    def encode(self, x: Integer[Array, " b *d"]) -> Float[Array, " b *d"]:
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(
                f"a discretised Gaussian models integers 0..{self.levels - 1}: got {x.dtype} data"
            )
        return self.edge * (2.0 * x.astype(float) / (self.levels - 1) - 1.0)

    def log_prob(
        self, x: Integer[Array, " b *d"], mean: Float[Array, " b *d"], std: Float[Array, "..."]
    ) -> Float[Array, " b"]:
        """Return Σ log P(x) in nats per example; x is not encoded, std is a scalar or [b]."""
        std, half_bin = expand(std, mean), self.edge / (self.levels - 1)
        gap = self.encode(x) - mean
        low = jnp.where(x <= 0, -jnp.inf, (gap - half_bin) / std)
        high = jnp.where(x >= self.levels - 1, jnp.inf, (gap + half_bin) / std)
        return jnp.sum(_log_mass(low, high), axis=tuple(range(1, mean.ndim)))


def discretised_gaussian(levels: int = 256, edge: float = 1.0) -> DiscretisedGaussian:
    """Return the decoder of DDPM, for integer data x in 0..levels−1 (Ho et al. 2020, eq. 13).

    encode(x) = edge · (2x/(levels − 1) − 1), so the outer levels lie at ±edge, and
    P(x) = Φ((encode(x) + δ − μ)/σ) − Φ((encode(x) − δ − μ)/σ) per dimension with half a bin
    δ = edge/(levels − 1); the two outer bins reach to infinity, so all levels sum to 1.
    edge = 1 is the paper's scaling. A denoiser trained with `likelihoods.discretised` knows
    the encoding with edge = 1 − 1/levels.
    Raises ValueError unless levels is a whole number of at least 2 and edge positive and
    finite; `encode` raises TypeError for data that is not of an integer type.
    """
    return DiscretisedGaussian(levels, edge)


def _log_mass(low: Float[Array, " b *d"], high: Float[Array, " b *d"]) -> Float[Array, " b *d"]:
    """Return log (Φ(high) − Φ(low)), with its digits in both tails."""
    # The mirror image of an interval in the upper tail, where Φ is near 1, has the same mass.
    upper = low + high > 0
    low, high = jnp.where(upper, -high, low), jnp.where(upper, -low, high)
    log_low, log_high = log_ndtr(low), log_ndtr(high)
    return log_high + jnp.log(-jnp.expm1(log_low - log_high))
