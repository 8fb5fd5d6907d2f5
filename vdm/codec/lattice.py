"""The grid of latents that a code walks along: one lattice per noise level, in float64 NumPy.

Level i of T + 1 is the chain's time i/T, from data (0) to noise (T). Its latents are
multiples k·δ_i of one spacing, whatever the image: in Bit-Swap order a latent is chosen before
the next one exists, so its lattice may depend on neither. Both directions of the code compute
means and scales here, by the same operations, since one ulp between them loses everything.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Values = Float[np.ndarray, " b *d"]
Indices = Int[np.ndarray, " b *d"]

# Standard deviations on either side of a mean within which a latent has a code of its own.
REACH = 8
# A support of 2¹⁷ takes 0.8 % of a coder's 24-bit probabilities for what cannot happen.
LARGEST_REACH = 2**16


class Normal(NamedTuple):
    """N(mean, std²) on the lattice of multiples of `spacing`; std may differ in every dimension."""

    mean: Values
    std: float | Values
    spacing: float

    @property
    def reach(self) -> int:
        """How far from the mean's nearest lattice point a code reaches, in lattice points.

        It is the widest one's: both directions know all of them. No law of a lattice's own needs
        more than LARGEST_REACH, and what a wider one has beyond it takes `push_any`'s digits.
        """
        return math.ceil(min(REACH * float(np.max(self.std)) / self.spacing, LARGEST_REACH))

    def log_density(self, index: Indices) -> Float[np.ndarray, " b"]:
        """Return log N(k·spacing; mean, std²) in nats, summed over all axes but the first."""
        scaled = (index * self.spacing - self.mean) / self.std
        log_std = math.log(self.std) if isinstance(self.std, float) else np.log(self.std)
        each = -0.5 * np.square(scaled) - log_std - 0.5 * math.log(2.0 * math.pi)
        return np.sum(each.reshape(len(each), -1), axis=1)


class Lattice(NamedTuple):
    """λ, α, σ and the spacing of every level [T + 1], and c of every step [T].

    Step i goes between the levels i and i + 1; its c is 1 − SNR_{i+1}/SNR_i.
    """

    log_snr: Float[np.ndarray, " levels"]
    alpha: Float[np.ndarray, " levels"]
    sigma: Float[np.ndarray, " levels"]
    c: Float[np.ndarray, " steps"]
    spacing: Float[np.ndarray, " levels"]

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.c)

    def values(self, level: int, index: Indices) -> Values:
        """Return the latents k·δ."""
        return index * self.spacing[level]

    def encoding(self, x: Values) -> Normal:
        """Return q(z_0|x) = N(α_0 x, σ_0² I) of encoded data."""
        return Normal(self.alpha[0] * x, float(self.sigma[0]), float(self.spacing[0]))

    def forward(self, step: int, z_s: Values) -> Normal:
        """Return q(z_t|z_s) = N((α_t/α_s) z_s, c σ_t² I), which needs no x (VDM, appendix A)."""
        gain = self.alpha[step + 1] / self.alpha[step]
        std = math.sqrt(self.c[step]) * self.sigma[step + 1]
        return Normal(gain * z_s, float(std), float(self.spacing[step + 1]))

    def backward(self, step: int, z_t: Values, eps_hat: Values, v: Values | None = None) -> Normal:
        """Return p(z_s|z_t) = N((α_s/α_t)(z_t − c σ_t ε̂), c σ_s² (1 + κ v)) (VDM, appendix A).

        VDM's has v = 0, and so has this one without a v.
        """
        gain = self.alpha[step] / self.alpha[step + 1]
        mean = gain * (z_t - self.c[step] * self.sigma[step + 1] * eps_hat)
        std = float(math.sqrt(self.c[step]) * self.sigma[step])
        if v is None:
            return Normal(mean, std, float(self.spacing[step]))
        return Normal(mean, std * np.sqrt(self.spread(step, v)), float(self.spacing[step]))

    def spread(self, step: int, v: Values) -> Values:
        """Return 1 + κ v with κ = e^{λ_s} − e^{λ_t}, by which v widens the variance of a step."""
        log_snr_s, log_snr_t = self.log_snr[step], self.log_snr[step + 1]
        return 1.0 + np.exp(log_snr_t) * np.expm1(log_snr_s - log_snr_t) * v

    def prior(self, shape: tuple[int, ...]) -> Normal:
        """Return p(z_1) = N(0, I)."""
        return Normal(np.zeros(shape), 1.0, float(self.spacing[-1]))


def lattice(log_snrs: Float[np.ndarray, " levels"], spacing: float) -> Lattice:
    """Return the lattice of increasing levels λ, from noise to data as samplers take them.

    A level's spacing is this fraction of the narrower of the two distributions that are coded
    on it: q(z_t|z_s), by which it is chosen, and p(z_t|z_u), under which it is stored; the latter
    as it is for v = 0, which no v makes narrower.
    Raises ValueError for levels that are fewer than two, not finite or not increasing, for a
    spacing that is not in (0, 1], and for levels so much closer to each other than to the
    next that a code would need more than 2¹⁷ lattice points for one of its symbols.
    """
    given = np.asarray(log_snrs, np.float64)
    if given.ndim != 1 or len(given) < 2:
        raise ValueError(f"a codec needs at least two noise levels: got shape {given.shape}")
    if not np.all(np.isfinite(given)):
        raise ValueError(f"log_snrs must be finite: got {given[~np.isfinite(given)][0]}")
    falls = np.flatnonzero(np.diff(given) <= 0)
    if falls.size:
        raise ValueError(
            "log_snrs must increase strictly, from noise to data: got "
            f"{given[falls[0]]} before {given[falls[0] + 1]}"
        )
    if not 0.0 < spacing <= 1.0:
        raise ValueError(f"spacing must be above 0 and at most 1: got {spacing}")
    log_snr = given[::-1]
    alpha = np.exp(-0.5 * np.logaddexp(0.0, -log_snr))
    sigma = np.exp(-0.5 * np.logaddexp(0.0, log_snr))
    c = -np.expm1(log_snr[1:] - log_snr[:-1])
    stored = np.append(np.sqrt(c) * sigma[:-1], 1.0)
    chosen = np.append(sigma[0], np.sqrt(c) * sigma[1:])
    spacings = spacing * np.minimum(stored, chosen)
    reach = REACH * np.maximum(stored, chosen) / spacings
    if np.max(reach) > LARGEST_REACH:
        worst = int(np.argmax(reach))
        raise ValueError(
            f"the noise levels next to λ = {log_snr[worst]} differ too little for spacing="
            f"{spacing}: a symbol would need {2 * math.ceil(reach[worst]) + 1} lattice points, and "
            f"the most is {2 * LARGEST_REACH + 1}; take fewer steps or a wider spacing"
        )
    return Lattice(log_snr, alpha, sigma, c, spacings)
