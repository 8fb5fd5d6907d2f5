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
        controller, limit = _controller(steps)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            zero,
            one,
            None,
            state,
            stepsize_controller=controller,
            max_steps=limit,
            throw=False,
        )
        ended = diffrax.is_successful(solution.result)
        state = jax.tree.map(lambda v: jnp.where(ended, v[0], jnp.nan), solution.ys)
        return state, STAGES * solution.stats["num_steps"] + 1

    return integrate


class _Beginning(diffrax.AbstractStepSizeController):
    """What chooses steps, with the first step as a part of it.

    A first step given to diffrax itself, and a list of times, are checked while the program runs,
    by a call of the host: such a program can neither be exported nor be compiled for other devices.
    """

    inner: diffrax.AbstractStepSizeController
    first: float

    def wrap(self, direction: Any) -> "_Beginning":
        """Return it for time that runs forwards (1) or backwards (−1)."""
        return _Beginning(self.inner.wrap(direction), self.first)

    def init(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: State,
        dt0: None,
        args: Any,
        func: Callable[..., Any],
        error_order: Any,
    ) -> tuple[Any, Any]:
        """Return the end of the first step, and what is remembered."""
        first = jnp.asarray(self.first, t0.dtype)
        found: tuple[Any, Any] = self.inner.init(terms, t0, t1, y0, first, args, func, error_order)
        return found

    def adapt_step_size(self, *given: Any) -> tuple[Any, ...]:
        """Return whether a step is taken, and the next one."""
        found: tuple[Any, ...] = self.inner.adapt_step_size(*given)
        return found


def _controller(steps: int | Adaptive) -> tuple[_Beginning, int]:
    """Return what chooses the steps from time 0 to 1, and how many there may be."""
    if isinstance(steps, Adaptive):
        adapting = diffrax.PIDController(rtol=steps.rtol, atol=steps.atol, norm=_size)
        return _Beginning(adapting, FIRST_STEP), MAX_STEPS
    return _Beginning(diffrax.ConstantStepSize(), 1.0 / steps), steps


def _size(state: State) -> Float[Array, ""]:
    """Return the norm of a local error in units of the tolerances.

    Averaged with the entries of z, that of a single log-density would not count.
    """
    z, *changes = state
    sizes = [jnp.sqrt(jnp.mean(jnp.square(z))), *(jnp.max(jnp.abs(c)) for c in changes)]
    return jnp.max(jnp.stack(sizes))
