"""The condition that a network is given for an example: its class, a vector, or none.

A class is a whole number from 0, a vector a row of floats. Where a network is built with
`optional_cond`, an example can come without: class −1, or a row that is not a number. It is
trained so by dropping conditions, and then gives the two denoisers of classifier-free guidance
(Ho & Salimans 2022).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

Condition = Int[Array, " b"] | Float[Array, " b c"]


def no_condition(size: int, num_classes: int | None, cond_dim: int | None) -> Condition:
    """Return for each of `size` examples that it has no condition, of a network's kind."""
    if num_classes is not None:
        return jnp.full((size,), -1)
    return jnp.full((size, cond_dim or 0), jnp.nan)


def drop_condition(key: Key[Array, ""], cond: Condition, rate: float) -> Condition:
    """Return the conditions with each example's condition dropped with probability `rate`."""
    dropped = jax.random.bernoulli(key, rate, cond.shape[:1])
    if jnp.issubdtype(cond.dtype, jnp.integer):
        return jnp.where(dropped, -1, cond)
    return jnp.where(dropped[:, None], jnp.nan, cond)


def check_condition(
    cond: Array | None,
    batch_size: int,
    num_classes: int | None,
    cond_dim: int | None,
    optional_cond: bool,
) -> None:
    """Raise TypeError or ValueError unless `cond` is what the network was built for.

    That is None without num_classes and cond_dim, integers of shape [b] with
    num_classes, floats of shape [b, cond_dim] with cond_dim; with optional_cond None too. The
    integers are 0..num_classes−1, with optional_cond −1 too; under jit, where values cannot be
    looked at, the network's output for another one is not a number.
    """
    if num_classes is None and cond_dim is None:
        if cond is not None:
            raise ValueError(
                "this network is unconditional (num_classes and cond_dim are None), expected "
                f"cond=None: got cond of shape {jnp.shape(cond)}"
            )
        return
    kind: type
    shape: tuple[int | None, ...]
    if num_classes is not None:
        kind, shape, what = jnp.integer, (batch_size,), f"integers in 0..{num_classes - 1}"
    else:
        kind, shape, what = jnp.floating, (batch_size, cond_dim), "floats"
    expected = f"expected cond to be {what} of shape {shape}"
    if cond is None and optional_cond:
        return
    if cond is None:
        raise ValueError(f"this network is conditional, {expected}: got cond=None")
    if not jnp.issubdtype(cond.dtype, kind):
        raise TypeError(f"{expected}: got {cond.dtype}")
    if cond.shape != shape:
        raise ValueError(f"{expected}: got shape {cond.shape}")
    if num_classes is None or isinstance(cond, jax.core.Tracer) or not cond.size:
        return
    values = np.asarray(cond)  # NumPy's: a minimum of JAX would be traced where others are
    for value in (int(values.min()), int(values.max())):
        if not -1 * optional_cond <= value < num_classes:
            raise ValueError(f"{expected}: got {value}")
