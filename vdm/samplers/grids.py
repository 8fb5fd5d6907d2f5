"""Grids of noise levels to sample along: increasing λ, from noise to data.

A grid of num_steps + 1 levels makes num_steps steps, which must be a whole number or
TypeError is raised. The end points may be traced values,
such as those of a learned schedule, and stand in the grid exactly.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm.choices import choose
from vdm.schedules.base import LogSnrFn, between, check_ends

End = Float[Array, ""] | float


def uniform_in_time(log_snr_fn: LogSnrFn, num_steps: int) -> Float[Array, " n"]:
    """Return λ(t) at even times, t = 1, 1 − 1/num_steps, ..., 0.

    It is the grid of the bound with T = num_steps steps.
    Raises ValueError for num_steps < 1.
    """
    _check_steps(num_steps)
    return log_snr_fn(jnp.linspace(1.0, 0.0, num_steps + 1))


def uniform(log_snr_max: End, log_snr_min: End, num_steps: int) -> Float[Array, " n"]:
    """Return even steps in λ from log_snr_min up to log_snr_max.

    Raises ValueError for num_steps < 1 and for ends that are not finite or not in order.
    """
    low, high = _ends(log_snr_max, log_snr_min, num_steps)
    return between(low, high, jnp.arange(num_steps + 1) / num_steps)


def edm(log_snr_max: End, log_snr_min: End, num_steps: int, rho: float = 7.0) -> Float[Array, " n"]:
    """Return EDM's levels, even in ς^{1/ρ} with ς = σ/α = e^{−λ/2}.

    ς_i = (ς_max^{1/ρ} + (i/N) (ς_min^{1/ρ} − ς_max^{1/ρ}))^ρ for i = 0..N, N = num_steps
    (Karras et al. 2022, eq. 5, without its last level ς = 0). A larger rho puts more steps
    near the data; rho → ∞ is `uniform`.
    Raises ValueError for num_steps < 1, ends that are not finite or not in order, and a rho
    that is not positive and finite.
    """
    if not (math.isfinite(rho) and rho > 0.0):
        raise ValueError(f"rho must be positive and finite: got {rho}")
    low, high = _ends(log_snr_max, log_snr_min, num_steps)
    part = jnp.arange(1, num_steps) / num_steps
    # The sum's logarithm is taken at once: ς^{1/ρ} itself overflows for a small rho. The
    # ends are put in as they are.
    inner = jnp.logaddexp(jnp.log1p(-part) - low / (2.0 * rho), jnp.log(part) - high / (2.0 * rho))
    return jnp.concatenate([low[None], -2.0 * rho * inner, high[None]])


def _of_lambda(log_snr_fn: LogSnrFn, num_steps: int) -> Array:
    high, low = _ends_of(log_snr_fn)
    return uniform(high, low, num_steps)


def _of_edm(log_snr_fn: LogSnrFn, num_steps: int) -> Array:
    high, low = _ends_of(log_snr_fn)
    return edm(high, low, num_steps)


GRIDS: dict[str, Callable[[LogSnrFn, int], Array]] = {
    "time": uniform_in_time,
    "lambda": _of_lambda,
    "edm": _of_edm,
}


def on_schedule(
    grid: str | Float[Array | np.ndarray, " n"], log_snr_fn: LogSnrFn, num_steps: int | None
) -> Float[Array, " n"]:
    """Return the grid of that name between a schedule's ends, or the given levels themselves.

    "time" is `uniform_in_time`, "lambda" is `uniform` and "edm" is `edm`; they need
    num_steps, and levels that are given say it themselves.
    Raises ValueError for an unknown name, and for num_steps < 1, missing, or given beside
    levels.
    """
    if not isinstance(grid, str):
        if num_steps is not None:
            raise ValueError(
                "a grid given as noise levels sets the number of steps itself: got "
                f"num_steps={num_steps} and {len(grid)} noise levels"
            )
        return jnp.asarray(grid, float)
    build = choose("grid", grid, GRIDS)
    if num_steps is None:
        raise ValueError(f"the grid {grid!r} needs num_steps, a whole number of at least 1")
    return build(log_snr_fn, num_steps)


def _ends_of(log_snr_fn: LogSnrFn) -> tuple[Array, Array]:
    return log_snr_fn(jnp.asarray(0.0)), log_snr_fn(jnp.asarray(1.0))


def _ends(
    log_snr_max: End, log_snr_min: End, num_steps: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return both ends as arrays, the noisy one first, checked where their values are known."""
    _check_steps(num_steps)
    if not any(isinstance(end, jax.core.Tracer) for end in (log_snr_max, log_snr_min)):
        check_ends(float(log_snr_max), float(log_snr_min))
    return jnp.asarray(log_snr_min, float), jnp.asarray(log_snr_max, float)


def _check_steps(num_steps: object) -> None:
    if not isinstance(num_steps, int | np.integer):
        raise TypeError(f"num_steps must be a whole number: got {num_steps!r}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1: got {num_steps}")
