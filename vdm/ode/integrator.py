"""Carrying a state from time 0 to time 1 along a field, with diffrax."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdm.ode.options import Adaptive, Steps, check_count

State = tuple[Float[Array, "..."], ...]
Field = Callable[[Any, State, None], State]  # of time, which is a scalar of z's precision
Integrate = Callable[[Field, State], tuple[State, Int[Array, ""]]]

MAX_STEPS = 4096
FIRST_STEP = 0.01  # the controller finds the next from it
STAGES = 6  # evaluations per step of Tsit5: its seventh is the first of the next step


def integrator(steps: Steps) -> Integrate:
    """Return the function (field, state at time 0) → (state at time 1, evaluations).

    `field(time, state, None)` is the state's rate of change, and the state a tuple that
    begins with z. Steps of the fifth-order method Tsit5 (Tsitouras 2011) adapt to
    tolerances, those of `ode.adaptive()` for None, or are a number of equal ones. A state that
    did not come to its end in 4096 steps is NaN. Raises ValueError for steps of any other kind.
    """
    steps = Adaptive() if steps is None else steps
    if not isinstance(steps, Adaptive):
        check_count("steps, where they are not None or ode.adaptive(...),", steps)

    def integrate(field: Field, state: State) -> tuple[State, Int[Array, ""]]:
        # Both of z's precision, or a float64 clock would promote a float32 solve.
        zero, one = jnp.zeros((), state[0].dtype), jnp.ones((), state[0].dtype)
        controller, first, limit = _controller(steps, zero, one)
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


def _controller(
    steps: int | Adaptive, zero: Float[Array, ""], one: Float[Array, ""]
) -> tuple[diffrax.AbstractStepSizeController, float | None, int]:
    """Return what chooses the steps from time 0 to 1, the first step and how many there may be."""
    if isinstance(steps, Adaptive):
        adapting = diffrax.PIDController(rtol=steps.rtol, atol=steps.atol, norm=_size)
        return adapting, FIRST_STEP, MAX_STEPS
    return diffrax.StepTo(jnp.linspace(zero, one, steps + 1)), None, steps


def _size(state: State) -> Float[Array, ""]:
    """Return the norm of a local error in units of the tolerances.

    Averaged with the entries of z, that of a single log-density would not count.
    """
    z, *changes = state
    sizes = [jnp.sqrt(jnp.mean(jnp.square(z))), *(jnp.max(jnp.abs(c)) for c in changes)]
    return jnp.max(jnp.stack(sizes))
