"""The bound as a function of θ that samplers and optimisers take: fixed noise, with a gradient."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm import condition as conditions
from vdm.condition import Condition
from vdm.few_steps.chain import Chain
from vdm.inference.bound import (
    Data,
    check_conditions,
    check_data,
    check_samples,
    constants,
    diffusion,
)
from vdm.model import VDM, Params
from vdm.ode.options import Adaptive

NUM_SAMPLES = 64
LogProbFn = Callable[[Condition | float], Float[Array, ""]]


def log_prob_fn(
    model: VDM,
    params: Params,
    x: Data,
    key: Key[Array, "..."],
    *,
    num_samples: int | None = None,
    num_steps: int | None = None,
    chain: Chain | None = None,
    ode: int | Adaptive | None = None,
    batch_size: int = 256,
) -> LogProbFn:
    """Return the function θ → Σ_i VLB(x_i|θ), an estimate of log p(x|θ) from below, in nats.

    x [n, *d] are observations of the same θ, as they come, and independent given it. The function
    is given ONE condition without a batch axis, a vector [c], a class, a field or `Conditions`,
    in the unit that the network was given in training. It is deterministic: the noise was fixed by
    the key, and is the same for every θ. It can be compiled and differentiated by θ, so that
    samplers such as blackjax's take it, with the logarithm of a prior added.

    `num_samples` evaluations of the network for each observation (64) are half as many evenly
    spaced times with a pair of noises ±ε. For Gaussian x|θ and its exact denoiser the gradient by θ
    has no noise but that of the times' sum, which falls exponentially with their number for smooth
    schedules between wide ends. With fixed noise the posterior is that of this noise: repeat with a
    second key to see how much it matters. `num_steps` and `chain` are those of `profile`.

    `ode` takes log p(x|θ) of the probability-flow ODE instead (`VDM.log_likelihood`), which has no
    noise for real data: a number of equal steps, or `vdm.ode.adaptive(...)`. `num_samples` (1) then
    counts draws of an integer's position in its bin, and must be 1 for real data.
    Raises what `profile` raises, ValueError for odd num_samples without `ode`, and for num_steps or
    a chain beside `ode`; the function raises ValueError or TypeError for a condition that the
    network does not take.
    """
    if ode is not None and (num_steps is not None or chain is not None):
        raise ValueError(f"the ODE has no num_steps and no chain: got one beside ode={ode}")
    x, keys = check_data(model, x, key, num_steps, chain)
    shape = x.shape[1:]
    if ode is not None:
        of_ode = functools.partial(_by_ode, model=model, num_samples=num_samples or 1, steps=ode)
        return lambda cond: of_ode(params, keys, x, _one(model, cond, shape))
    num_samples = NUM_SAMPLES if num_samples is None else num_samples
    num_levels = check_samples(num_samples, 1, 1, batch_size)
    sizes = {"num_sets": 1, "num_levels": num_levels}
    constant = jnp.sum(constants(params, keys, x, chain, model=model, **sizes))
    steps = None if num_steps is None else jnp.asarray(num_steps)

    def log_prob(cond: Condition | float) -> Float[Array, ""]:
        given = _one(model, cond, shape)
        moving = diffusion(
            params, keys, x, given, steps, chain, model=model, batch_size=batch_size, **sizes
        )
        return -(jnp.sum(moving) + constant)

    return log_prob


def _one(model: VDM, cond: Any, shape: tuple[int, ...]) -> Condition:
    """Return one condition as a batch of one."""
    given = conditions.as_arrays(cond)  # a list is one vector
    return check_conditions(model, jax.tree.map(lambda part: part[None], given), shape)


@functools.partial(jax.jit, static_argnames=("model", "num_samples", "steps"))
def _by_ode(
    params: Params,
    keys: Key[Array, " n"],
    x: Data,
    cond: Condition,
    *,
    model: VDM,
    num_samples: int,
    steps: int | Adaptive,
) -> Float[Array, ""]:
    every = conditions.take(cond, jnp.zeros(len(x), int))
    found = model.log_likelihood(params, keys, x, every, num_samples=num_samples, steps=steps)
    return jnp.sum(found)
