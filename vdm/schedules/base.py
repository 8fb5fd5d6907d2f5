"""What every schedule offers, and the pieces they share."""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm.diffusion import LARGEST_LOG_SNR

Params = dict[str, dict[str, Array]]
LogSnrFn = Callable[[Float[Array, "*b"]], Float[Array, "*b"]]
BISECTIONS = 50


@runtime_checkable
class Schedule(Protocol):
    """A decreasing λ(t) between two ends; t and λ may have any shape.

    `log_snr_max` and `log_snr_min` are λ(0) and λ(1), or their start where ends are learned.
    """

    @property
    def log_snr_max(self) -> float:
        """λ(0)."""
        ...

    @property
    def log_snr_min(self) -> float:
        """λ(1)."""
        ...

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
    log_snr_fn: LogSnrFn, t: Float[Array, "*b"]
) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """Return λ(t) and dλ/dt (negative), for a λ that acts on each time by itself."""
    return jax.jvp(log_snr_fn, (t,), (jnp.ones_like(t),))


def between(start: float | Array, end: float | Array, t: Array) -> Array:
    """Return (1 − t) start + t end, exact at both ends in any precision."""
    # start + (end - start) * t is not exact at t = 1.
    return (1.0 - t) * start + t * end


def bisect(log_snr_fn: LogSnrFn, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Return the times in [0, 1] at which a decreasing λ(t) passes λ, without derivatives."""

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        above = log_snr_fn(middle) > log_snr
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    bracket = (jnp.zeros_like(log_snr), jnp.ones_like(log_snr))
    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, bracket)
    return 0.5 * (low + high)


def fixed_params() -> Params:
    """Return the parameters of a schedule that learns nothing."""
    return {"ends": {}, "shape": {}}


def check_ends(log_snr_max: float, log_snr_min: float) -> None:
    """Raise ValueError unless both ends are finite, in order and within ±80."""
    if not (math.isfinite(log_snr_max) and math.isfinite(log_snr_min)):
        raise ValueError(f"end points must be finite: got {log_snr_max} and {log_snr_min}")
    if not log_snr_max > log_snr_min:
        raise ValueError(
            f"log_snr_max must be above log_snr_min: got log_snr_max={log_snr_max}, "
            f"log_snr_min={log_snr_min} (λ falls with time; are the two reversed?)"
        )
    if max(abs(log_snr_max), abs(log_snr_min)) > LARGEST_LOG_SNR:
        raise ValueError(
            f"end points must be between -{LARGEST_LOG_SNR:.0f} and {LARGEST_LOG_SNR:.0f}, where "
            f"float32 holds exp(λ): got {log_snr_max} and {log_snr_min}"
        )


def check_width(width: int) -> None:
    """Raise ValueError unless a monotone network has at least one hidden unit."""
    if not (isinstance(width, int) and width >= 1):
        raise ValueError(f"width must be a whole number of at least 1: got {width!r}")
