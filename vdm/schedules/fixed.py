"""The schedules of the literature, in closed form, each between any two ends."""

import dataclasses
import math

import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, Key

from vdm.schedules.base import Params, between, check_ends, fixed_params


@dataclasses.dataclass(frozen=True)
class Linear:
    """λ falls linearly in t; see `linear`."""

    log_snr_max: float
    log_snr_min: float

    def __post_init__(self) -> None:
        check_ends(self.log_snr_max, self.log_snr_min)

    def init(self, key: Key[Array, ""]) -> Params:
        del key
        return fixed_params()

    def log_snr(self, params: Params, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        del params
        return between(self.log_snr_max, self.log_snr_min, t)

    def inverse(self, params: Params, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        del params
        return (self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)


@dataclasses.dataclass(frozen=True)
class Cosine:
    """α falls as a cosine of time; see `cosine`."""

    log_snr_max: float
    log_snr_min: float
    shift: float = 0.0

    def __post_init__(self) -> None:
        check_ends(self.log_snr_max, self.log_snr_min)
        if not math.isfinite(self.shift):
            raise ValueError(f"shift must be finite: got {self.shift}")

    def init(self, key: Key[Array, ""]) -> Params:
        del key
        return fixed_params()

    def _angles(self) -> tuple[float, float]:
        """The angle θ at t = 0 and the complement π/2 − θ at t = 1."""
        start = math.atan(math.exp(-(self.log_snr_max - self.shift) / 2))
        rest = math.atan(math.exp((self.log_snr_min - self.shift) / 2))
        return start, rest

    def log_snr(self, params: Params, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        del params
        start, rest = self._angles()
        # θ and its complement are each a sum of positive terms: float32 keeps every
        # digit of both tails, where tan(θ) near π/2 would lose four.
        theta = between(start, math.pi / 2 - rest, t)
        complement = between(math.pi / 2 - start, rest, t)
        return 2.0 * (jnp.log(jnp.sin(complement)) - jnp.log(jnp.sin(theta))) + self.shift

    def inverse(self, params: Params, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        del params
        start, rest = self._angles()
        theta = jnp.arctan(jnp.exp(-(log_snr - self.shift) / 2))
        return (theta - start) / (math.pi / 2 - rest - start)


@dataclasses.dataclass(frozen=True)
class BetaLinear:
    """−log α² grows with the square of time; see `beta_linear`."""

    log_snr_max: float
    log_snr_min: float

    def __post_init__(self) -> None:
        check_ends(self.log_snr_max, self.log_snr_min)

    def init(self, key: Key[Array, ""]) -> Params:
        del key
        return fixed_params()

    def _exponents(self) -> tuple[float, float]:
        """−log α² at both ends."""
        return math.log1p(math.exp(-self.log_snr_max)), math.log1p(math.exp(-self.log_snr_min))

    def log_snr(self, params: Params, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        del params
        return -jnp.log(jnp.expm1(between(*self._exponents(), jnp.square(t))))

    def inverse(self, params: Params, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        del params
        first, last = self._exponents()
        exponent = jnp.logaddexp(-log_snr, 0.0)
        return jnp.sqrt(jnp.maximum(exponent - first, 0.0) / (last - first))


@dataclasses.dataclass(frozen=True)
class FlowMatching:
    """The straight path (1 − τ) x + τ ε; see `flow_matching`."""

    log_snr_max: float
    log_snr_min: float

    def __post_init__(self) -> None:
        check_ends(self.log_snr_max, self.log_snr_min)

    def init(self, key: Key[Array, ""]) -> Params:
        del key
        return fixed_params()

    def _path(self) -> tuple[float, float]:
        """The path's time τ at t = 0 and its rest 1 − τ at t = 1."""
        return 1 / (1 + math.exp(self.log_snr_max / 2)), 1 / (1 + math.exp(-self.log_snr_min / 2))

    def log_snr(self, params: Params, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        del params
        start, rest = self._path()
        # As for the cosine: τ and 1 − τ each a sum of positive terms.
        tau, remaining = between(start, 1 - rest, t), between(1 - start, rest, t)
        return 2.0 * (jnp.log(remaining) - jnp.log(tau))

    def inverse(self, params: Params, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        del params
        start, rest = self._path()
        return (1 / (1 + jnp.exp(log_snr / 2)) - start) / (1 - rest - start)


@dataclasses.dataclass(frozen=True)
class EDM:
    """λ is normally distributed over uniform times; see `edm`."""

    log_snr_max: float
    log_snr_min: float
    mean: float = 2.4
    std: float = 2.4

    def __post_init__(self) -> None:
        check_ends(self.log_snr_max, self.log_snr_min)
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"mean must be finite and std positive: got {self.mean}, {self.std}")

    def init(self, key: Key[Array, ""]) -> Params:
        del key
        return fixed_params()

    def _tails(self) -> tuple[float, float]:
        """The normal law's mass above λ_max, and that below λ_min."""
        above = 0.5 * math.erfc((self.log_snr_max - self.mean) / self.std / math.sqrt(2))
        below = 0.5 * math.erfc((self.mean - self.log_snr_min) / self.std / math.sqrt(2))
        return above, below

    def log_snr(self, params: Params, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        del params
        above_max, below_min = self._tails()
        above = between(above_max, 1 - below_min, t)
        below = between(1 - above_max, below_min, t)
        # Each quantile from the smaller of the two masses, which float32 resolves.
        # Not their minimum, whose derivative is 0 where both are equal.
        small = jnp.where(above < below, above, below)
        return self.mean + self.std * jnp.where(above < below, -1.0, 1.0) * ndtri(small)

    def inverse(self, params: Params, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        del params
        above_max, below_min = self._tails()
        above = ndtr((self.mean - log_snr) / self.std)
        return (above - above_max) / (1 - below_min - above_max)


def linear(log_snr_max: float, log_snr_min: float) -> Linear:
    """Return λ(t) = (1 − t) λ_max + t λ_min, without parameters.

    Raises ValueError unless both ends are finite and log_snr_max > log_snr_min.
    """
    return Linear(log_snr_max, log_snr_min)


def cosine(log_snr_max: float, log_snr_min: float, shift: float = 0.0) -> Cosine:
    """Return λ(t) = −2 log tan θ + shift with θ linear in t between the two ends.

    This is α = cos θ of Nichol & Dhariwal (2021), cut to the range of λ by the choice
    of the first and last angle, so that λ keeps its rate up to both ends (clipping λ
    would not). For images of width d the shift is 2 log(64/d) (Hoogeboom et al. 2023);
    the ends stay where they are put.
    Raises ValueError unless the ends are finite and in order and the shift is finite.
    """
    return Cosine(log_snr_max, log_snr_min, shift)


def beta_linear(
    log_snr_max: float = -math.log(math.expm1(1e-4)),
    log_snr_min: float = -math.log(math.expm1(1e-4 + 10.0)),
) -> BetaLinear:
    """Return λ(t) = −log expm1(a + (b − a) t²), DDPM's linear β in continuous time.

    The default ends are those of the VDM paper's comparison, a = 10⁻⁴ and b − a = 10
    (Ho et al. 2020; Song et al. 2021); other ends set a and b.
    Raises ValueError unless both ends are finite and log_snr_max > log_snr_min.
    """
    return BetaLinear(log_snr_max, log_snr_min)


def flow_matching(log_snr_max: float, log_snr_min: float) -> FlowMatching:
    """Return λ(t) = 2 log((1 − τ)/τ) with τ linear in t between the two ends.

    The signal-to-noise ratio of the straight path (1 − τ) x + τ ε (Lipman et al. 2023).
    Raises ValueError unless both ends are finite and log_snr_max > log_snr_min.
    """
    return FlowMatching(log_snr_max, log_snr_min)


def edm(log_snr_max: float, log_snr_min: float, mean: float = 2.4, std: float = 2.4) -> EDM:
    """Return the λ(t) whose law over uniform t is N(mean, std²), cut to the two ends.

    EDM trains with log ς ~ N(−1.2, 1.2²), ς = e^{−λ/2}: hence the defaults
    (Karras et al. 2022, table 1).
    Raises ValueError unless the ends are finite and in order and std is positive.
    """
    return EDM(log_snr_max, log_snr_min, mean, std)
