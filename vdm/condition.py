"""The condition of an example: a class, a vector, a field, a mask, or several of them.

A class is a whole number from 0, a vector a row of floats, a field floats at each of the example's
positions, and a mask says which points a set has (`vdm.sets`). But for the mask, an example can
come without: class −1, or a vector or field of nothing but NaN. A network that was trained so, by
dropping conditions, has the two denoisers of classifier-free guidance (Ho & Salimans 2022).
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

T = TypeVar("T")


class Conditions(NamedTuple):
    """Several conditions of each example of a batch; None for a kind that there is not.

    `label` is the class, integers of shape [b], `vector` floats of shape [b, c], and `field` floats
    of the examples' own shape [b, *d, c] but for the number of channels. `mask` is booleans of
    shape [b, n], True where a set has a point.
    """

    label: Array | np.ndarray | None = None
    vector: Array | np.ndarray | None = None
    field: Array | np.ndarray | None = None
    mask: Array | np.ndarray | None = None


# An array by itself is the condition of a network that has one kind, which is not the mask.
Condition = Array | np.ndarray | Conditions


def as_arrays(cond: Condition | None) -> Condition | None:
    """Return the condition with arrays of JAX; None is no condition, here and below."""
    if cond is None or not isinstance(cond, Conditions):
        return None if cond is None else jnp.asarray(cond)  # a list of classes is one array
    return Conditions(*(None if part is None else jnp.asarray(part) for part in cond))


def take(cond: T, rows: Int[Array | np.ndarray, " r"] | slice) -> T:
    """Return the conditions of some rows of a batch."""
    return jax.tree.map(lambda part: part[rows], cond)


def num_rows(cond: Condition) -> int:
    """Return the number of examples; raises ValueError for parts of several numbers of them."""
    sizes = [len(part) for part in jax.tree.leaves(cond)]
    if len(set(sizes)) != 1:
        raise ValueError(f"the parts of a condition must be of as many examples: got {sizes}")
    return sizes[0]


def no_condition(
    size: int,
    num_classes: int | None,
    cond_dim: int | None,
    field_shape: tuple[int, ...] | None = None,
) -> Condition:
    """Return for each of `size` examples that it has no condition, of a network's kinds."""
    found = Conditions(
        label=None if num_classes is None else jnp.full((size,), -1),
        vector=None if cond_dim is None else jnp.full((size, cond_dim), jnp.nan),
        field=None if field_shape is None else jnp.full((size, *field_shape), jnp.nan),
    )
    there = jax.tree.leaves(found)
    return there[0] if len(there) == 1 else found


def drop_condition(key: Key[Array, ""], cond: Condition, rate: float) -> Condition:
    """Return the conditions with each example's dropped, all parts of it, with probability `rate`.

    A mask stays: it says what the example is. Raises ValueError for parts of several numbers of
    examples.
    """
    dropped = jax.random.bernoulli(key, rate, (num_rows(cond),))

    def without(part: Array) -> Array:
        if part.dtype == bool:
            return part
        none = -1 if jnp.issubdtype(part.dtype, jnp.integer) else jnp.nan
        return jnp.where(jnp.expand_dims(dropped, range(1, part.ndim)), none, part)

    found: Condition = jax.tree.map(without, as_arrays(cond))
    return found
