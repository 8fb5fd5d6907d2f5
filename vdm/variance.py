"""Two gradients in one backward pass: of a mean loss, and of its variance.

The interior of a learned schedule does not change the bound, only how much an estimate of it
varies: its plain gradient is pure noise. The VDM paper (appendix I) lets it descend the
variance instead, which this module does together with the gradient of the loss, without a second
pass.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Params = dict[str, Any]
# (params, levels) → ((mean, (aux, losses [b])), (gradient, mean's gradient by levels))
ValueAndGrad = Callable[[Params, Any], tuple[tuple[Array, tuple[Any, Array]], tuple[Params, Any]]]


def two_gradients(
    value_and_grad: ValueAndGrad, levels_fn: Callable[[Any], Any], params: Params
) -> tuple[tuple[Float[Array, ""], Any], Params, Any]:
    """Return ((mean loss, aux), gradient, levels), the schedule's shape given the variance's.

    `levels_fn(params["schedule"])` gives the batch's noise levels, arrays of shape [b];
    `value_and_grad(params, levels)` is jax.value_and_grad with argnums=(0, 1) and has_aux=True
    of a function that returns the mean of losses L_i and (aux, L). Network and end points get
    the gradient of mean L; "shape" gets that of mean L², which is the variance of independent
    draws up to a constant. L_i depends on the shape through its own level only, and
    d mean L²/d level_i = 2 L_i d mean L/d level_i: the same cotangents, scaled.
    """
    levels, pull = jax.vjp(levels_fn, params["schedule"])
    (mean, (aux, losses)), (gradient, by_level) = value_and_grad(params, levels)
    (of_mean,) = pull(by_level)
    (of_square,) = pull(jax.tree.map(lambda g: 2.0 * losses * g, by_level))
    ends = jax.tree.map(jnp.add, gradient["schedule"]["ends"], of_mean["ends"])
    schedule = {"ends": ends, "shape": of_square["shape"]}
    return (mean, aux), {**gradient, "schedule": schedule}, levels
