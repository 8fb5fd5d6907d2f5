"""Noise schedules λ(t): how the log signal-to-noise ratio falls as t runs from 0 to 1.

A schedule is a frozen value with three functions: `init(key)` gives its parameters,
`log_snr(params, t)` gives λ and `inverse(params, log_snr)` gives t back. Parameters
are always {"ends": ..., "shape": ...}, empty where nothing is learned, because the
two groups are trained differently: the end points descend the bound, the shape
between them does not change it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Params = dict[str, dict[str, Array]]

# Learned ends never come nearer to each other: softplus alone vanishes in rounding.
MIN_RANGE = 0.01


@runtime_checkable
class Schedule(Protocol):
    """What every schedule offers; t and λ may have any shape."""

    log_snr_max: float
    log_snr_min: float

    def init(self, key: Key[Array, ""]) -> Params:
        """Return fresh parameters."""
        ...

    def log_snr(self, params: Params, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Return λ(t), strictly decreasing."""
        ...

    def inverse(self, params: Params, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Return the time at which the schedule passes λ."""
        ...


def log_snr_and_rate(
    log_snr_fn: Callable[[Float[Array, "*b"]], Float[Array, "*b"]], t: Float[Array, "*b"]
) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """Return λ(t) and dλ/dt (negative), for a λ that acts on each time by itself."""
    return jax.jvp(log_snr_fn, (t,), (jnp.ones_like(t),))


@dataclasses.dataclass(frozen=True)
class Linear:
    """λ falls linearly in t; see `linear`."""

    log_snr_max: float
    log_snr_min: float

    def __post_init__(self):
        _check_ends(self.log_snr_max, self.log_snr_min)

    def init(self, key: Key[Array, ""]) -> Params:
        del key
        return {"ends": {}, "shape": {}}

    def log_snr(self, params: Params, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        del params
        return _between(self.log_snr_max, self.log_snr_min, t)

    def inverse(self, params: Params, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        del params
        return (self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)


@dataclasses.dataclass(frozen=True)
class Cosine:
    """α falls as a cosine of time; see `cosine`."""

    log_snr_max: float
    log_snr_min: float
    shift: float = 0.0

    def __post_init__(self):
        _check_ends(self.log_snr_max, self.log_snr_min)
        if not math.isfinite(self.shift):
            raise ValueError(f"shift must be finite: got {self.shift}")

    def init(self, key: Key[Array, ""]) -> Params:
        del key
        return {"ends": {}, "shape": {}}

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
        theta = _between(start, math.pi / 2 - rest, t)
        complement = _between(math.pi / 2 - start, rest, t)
        return 2.0 * (jnp.log(jnp.sin(complement)) - jnp.log(jnp.sin(theta))) + self.shift

    def inverse(self, params: Params, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        del params
        start, rest = self._angles()
        theta = jnp.arctan(jnp.exp(-(log_snr - self.shift) / 2))
        return (theta - start) / (math.pi / 2 - rest - start)


@dataclasses.dataclass(frozen=True)
class LearnedLinear:
    """λ falls linearly between two learned ends; see `learned_linear`."""

    log_snr_max: float
    log_snr_min: float

    def __post_init__(self):
        _check_ends(self.log_snr_max, self.log_snr_min)
        if self.log_snr_max - self.log_snr_min <= MIN_RANGE:
            raise ValueError(
                f"learned ends must start more than {MIN_RANGE} apart: got "
                f"log_snr_max={self.log_snr_max}, log_snr_min={self.log_snr_min}"
            )

    def init(self, key: Key[Array, ""]) -> Params:
        del key
        return {"ends": _init_ends(self.log_snr_max, self.log_snr_min), "shape": {}}

    def log_snr(self, params: Params, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        return _between(*_ends(params), t)

    def inverse(self, params: Params, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        log_snr_max, log_snr_min = _ends(params)
        return (log_snr_max - log_snr) / (log_snr_max - log_snr_min)


def linear(log_snr_max: float, log_snr_min: float) -> Linear:
    """Return λ(t) = (1 − t) λ_max + t λ_min, without parameters.

    Raises ValueError unless both ends are finite and log_snr_max > log_snr_min.
    """
    return Linear(log_snr_max, log_snr_min)


def cosine(log_snr_max: float, log_snr_min: float, shift: float = 0.0) -> Cosine:
    """Return λ(t) = −2 log tan θ + shift with θ linear in t between the two ends.

    This is α = cos θ of Nichol & Dhariwal (2021), cut to the range of λ by the choice
    of the first and last angle, so that λ keeps its rate up to both ends (clipping λ
    would not). For images of width d the shift is 2 log(64/d) (Hoogeboom et al. 2023,
    eq. 11); the ends stay where they are put.
    Raises ValueError unless the ends are finite and in order and the shift is finite.
    """
    return Cosine(log_snr_max, log_snr_min, shift)


def learned_linear(log_snr_max: float, log_snr_min: float) -> LearnedLinear:
    """Return a linear λ(t) whose two ends are parameters, starting at the given values.

    The parameters are λ_min and the softplus-inverse of λ_max − λ_min − 0.01, so λ_max
    stays above λ_min whatever an optimiser does (VDM, appendix on the noise schedule).
    Raises ValueError unless both ends are finite and log_snr_max > log_snr_min + 0.01.
    """
    return LearnedLinear(log_snr_max, log_snr_min)


def _between(start: float | Array, end: float | Array, t: Array) -> Array:
    # Exact at both ends in any precision; start + (end - start) * t is not.
    return (1.0 - t) * start + t * end


def _init_ends(log_snr_max: float, log_snr_min: float) -> dict[str, Array]:
    width = log_snr_max - log_snr_min - MIN_RANGE
    inverse_softplus = width + math.log(-math.expm1(-width))
    return {"log_snr_min": jnp.asarray(float(log_snr_min)), "width": jnp.asarray(inverse_softplus)}


def _ends(params: Params) -> tuple[Array, Array]:
    log_snr_min = params["ends"]["log_snr_min"]
    width = MIN_RANGE + jax.nn.softplus(params["ends"]["width"])
    return log_snr_min + width, log_snr_min


def _check_ends(log_snr_max: float, log_snr_min: float) -> None:
    if not (math.isfinite(log_snr_max) and math.isfinite(log_snr_min)):
        raise ValueError(f"end points must be finite: got {log_snr_max} and {log_snr_min}")
    if not log_snr_max > log_snr_min:
        raise ValueError(
            f"log_snr_max must be above log_snr_min: got log_snr_max={log_snr_max}, "
            f"log_snr_min={log_snr_min} (λ falls with time; are the two reversed?)"
        )
