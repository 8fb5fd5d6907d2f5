"""Carrying a state from time 0 to time 1 along a field, with diffrax."""

import math
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

State = tuple[Float[Array, "..."], ...]
Field = Callable[[Float[Array, ""], State, None], State]
Integrate = Callable[[Field, State], tuple[State, Any]]

TOLERANCE = 1e-5
MAX_STEPS = 4096
FIRST_STEP = 0.01  # the controller goes on from there
STAGES = 6  # evaluations per step of Tsit5: its seventh is the first of the next step


def integrator(rtol: float | None, atol: float | None, num_steps: int | None) -> Integrate:
    """Return the function (field, state at time 0) → (state at time 1, evaluations).

    `field(time, state, None)` is the state's rate of change, and the state a tuple that
    begins with z. Steps of the fifth-order method Tsit5 (Tsitouras 2011) adapt to the
    tolerances, 1e-5 where not given, or are `num_steps` equal ones. A state that did not
    come to its end in 4096 steps is NaN. Raises ValueError for tolerances that are
    not positive and finite, num_steps < 1, or both kinds of steps at once.
    """
    if num_steps is None:
        adaptive = _adaptive(
            TOLERANCE if rtol is None else rtol, TOLERANCE if atol is None else atol
        )
    elif not (isinstance(num_steps, int) and num_steps >= 1):
        raise ValueError(f"num_steps must be a whole number of at least 1: got {num_steps!r}")
    elif not (rtol is None and atol is None):
        raise ValueError(
            f"fixed steps have no tolerances: got num_steps={num_steps} with rtol={rtol} and "
            f"atol={atol}, expected either num_steps or tolerances"
        )

    def integrate(field, state):
        # Both of z's precision, or a float64 clock would promote a float32 solve.
        zero, one = jnp.zeros((), state[0].dtype), jnp.ones((), state[0].dtype)
        controller: diffrax.AbstractStepSizeController
        if num_steps is None:
            controller, first, limit = adaptive, FIRST_STEP, MAX_STEPS
        else:
            controller = diffrax.StepTo(jnp.linspace(zero, one, num_steps + 1))
            first, limit = None, num_steps
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            zero,
            one,
            first,
            state,
            stepsize_controller=controller,
            max_steps=limit,
            throw=False,
        )
        ended = diffrax.is_successful(solution.result)
        state = jax.tree.map(lambda v: jnp.where(ended, v[0], jnp.nan), solution.ys)
        return state, STAGES * solution.stats["num_steps"] + 1

    return integrate


def _adaptive(rtol: float, atol: float) -> diffrax.PIDController:
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite: got {value}")
    return diffrax.PIDController(rtol=rtol, atol=atol, norm=_size)


def _size(state):
    """Return the size of a local error that tolerances have been divided out of.

    Averaged with the entries of z, that of a single log-density would not count.
    """
    z, *changes = state
    sizes = [jnp.sqrt(jnp.mean(jnp.square(z))), *(jnp.max(jnp.abs(c)) for c in changes)]
    return jnp.max(jnp.stack(sizes))
