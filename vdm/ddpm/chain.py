"""A DDPM chain: its variances β and what follows from them alone."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vdm import diffusion, schedules
from vdm.choices import unknown

VARIANCES = ("posterior", "beta")


@dataclasses.dataclass(frozen=True)
class Chain:
    """The variances β_1 … β_N of N latents x_1 … x_N; see `from_betas`.

    Everything else is computed from them in float64: latents are counted from 1, and x_0 is
    the data.
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        schedules.from_betas(self.betas)  # refuses what is no chain

    @property
    def num_latents(self) -> int:
        """N."""
        return len(self.betas)

    @property
    def schedule(self) -> schedules.Schedule:
        """The same process as a schedule: x_n is z at t = (n − 1)/(N − 1)."""
        return schedules.from_betas(self.betas)

    @property
    def log_snrs(self) -> tuple[float, ...]:
        """λ_n = logit ᾱ_n of x_1 … x_N, decreasing."""
        return schedules.from_betas(self.betas).log_snrs

    @property
    def alpha_bars(self) -> np.ndarray:
        """ᾱ_n = Π_{j ≤ n} (1 − β_j), which is α² of x_1 … x_N."""
        return np.exp(np.cumsum(np.log1p(-np.asarray(self.betas))))

    def log_snr(
        self, n: int | Int[Array | np.ndarray, "..."], dtype: DTypeLike = float
    ) -> Float[Array, "..."]:
        """Return λ_n for n in 0..N, elementwise; λ_0, the data's own, is infinite."""
        return jnp.asarray((math.inf, *self.log_snrs), dtype)[n]

    def posterior(
        self,
        x_n: Float[Array, " b *d"],
        x_0: Float[Array, " b *d"],
        n: int | Int[Array | np.ndarray, "..."],
    ) -> tuple[Float[Array, " b *d"], Float[Array, "..."]]:
        """Return mean and variance β̃_n of q(x_{n−1} | x_n, x_0) (Ho et al. 2020, eq. 6 and 7).

        μ̃_n = (√ᾱ_{n−1} β_n x_0 + √(1 − β_n) (1 − ᾱ_{n−1}) x_n)/(1 − ᾱ_n) and
        β̃_n = β_n (1 − ᾱ_{n−1})/(1 − ᾱ_n); for n = 1 it is x_0 itself, without variance.
        n is a number or one per example; the variance has n's shape with axes appended.
        Raises ValueError for an n that is not in 1..N.
        """
        check_latent(n, 1, self.num_latents)
        log_snr_n, log_snr_before = (self.log_snr(m, x_n.dtype) for m in (n, n - 1))
        mean, std = diffusion.posterior(x_n, x_0, log_snr_n, log_snr_before)
        return mean, jnp.square(std)

    def reverse_variances(self, variance: str) -> np.ndarray:
        """Return σ_n² of p(x_{n−1}|x_n) for n = 1..N, by either usual choice.

        "posterior" is σ_n² = β̃_n, right for data that are one point, and "beta" is β_n, right
        for standard normal data (Ho et al. 2020, section 3.2). β̃_1 is 0, which no decoder can
        have, so that "posterior" starts with β̃_2 as the paper's code does.
        Raises ValueError for another name.
        """
        check_variance(variance)
        betas = np.asarray(self.betas)
        if variance == "beta":
            return betas
        posterior = betas[1:] * np.exp(self._log_ratios())
        return np.concatenate([posterior[:1], posterior])

    def extra_kl(self, variance: str) -> np.ndarray:
        """Return what the choice costs at n = 2..N even where μ_θ = μ̃_n, in nats per dimension.

        KL(N(μ, β̃_n) ‖ N(μ, σ_n²)) = ½ (r − 1 − log r) with r = β̃_n/σ_n²: 0 for "posterior".
        The part of the KL that is due to the mean is r times that of "posterior".
        Raises ValueError for another name.
        """
        check_variance(variance)
        if variance == "posterior":
            return np.zeros(self.num_latents - 1)
        log_ratio = self._log_ratios()
        return 0.5 * (np.expm1(log_ratio) - log_ratio)

    def strided(self, num_latents: int) -> "Chain":
        """Return the chain through `num_latents` of the latents, from x_1 to x_N.

        The kept ones lie as evenly as whole numbers allow (Nichol & Dhariwal 2021, section 4)
        and have the marginals they had: β'_k = 1 − ᾱ_{n_k}/ᾱ_{n_{k−1}}.
        Raises ValueError unless 2 ≤ num_latents ≤ N.
        """
        if not (isinstance(num_latents, int) and 2 <= num_latents <= self.num_latents):
            raise ValueError(
                f"num_latents must be a whole number from 2 to the chain's {self.num_latents}: "
                f"got {num_latents!r}"
            )
        kept = np.round(np.linspace(0, self.num_latents - 1, num_latents)).astype(int)
        log_alpha_bars = np.cumsum(np.log1p(-np.asarray(self.betas)))[kept]
        return from_betas(-np.expm1(np.diff(log_alpha_bars, prepend=0.0)))

    def _log_ratios(self) -> np.ndarray:
        """Return log β̃_n/β_n = log σ²(λ_{n−1}) − log σ²(λ_n) for n = 2..N, with σ² = 1 − ᾱ."""
        return np.diff(np.logaddexp(0.0, self.log_snrs))


def from_betas(betas: Sequence[float] | np.ndarray) -> Chain:
    """Return the chain x_n = √(1 − β_n) x_{n−1} + √β_n ε, n = 1..N (Ho et al. 2020, eq. 2).

    Chains of equal betas are equal and have equal hashes. Raises ValueError for fewer than two
    betas or one outside (0, 1).
    """
    return Chain(tuple(np.atleast_1d(np.asarray(betas, np.float64)).tolist()))


def check_latent(n: int | Array | np.ndarray, first: int, last: int) -> None:
    """Raise ValueError unless every n is in first..last, where n is known before compilation."""
    if isinstance(n, jax.core.Tracer):
        return
    outside = (np.asarray(n) < first) | (np.asarray(n) > last)
    if np.any(outside):
        raise ValueError(f"n must be from {first} to {last}: got {np.asarray(n)[outside].flat[0]}")


def check_variance(variance: str) -> None:
    """Raise ValueError unless the name is one of `VARIANCES`."""
    if variance not in VARIANCES:
        raise ValueError(unknown("variance", variance, VARIANCES))
