"""The key of all noise of a result, as data of a compiled function: another key is no new program.

Plain numbers go to the devices of several processes alike, which typed keys do not.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key as Keys

from vdm.run.config.schema import SEED
from vdm.run.errors import UserError

Key = int | np.integer | jax.Array


def data(key: Key) -> np.ndarray:
    """Return the numbers of a key, or of the key that a seed stands for.

    Raises UserError for a seed out of its range, and for what is not one typed key of JAX's default
    kind.
    """
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        problem = SEED.problem("key", int(key))
        if problem is not None:
            raise UserError(problem)
        key = jax.random.key(np.uint32(key))  # an int would have to fit into 31 bits
    expected = "expected a seed such as key=0, or one key such as jax.random.key(0)"
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise UserError(f"key is {type(key).__name__}: {expected}")
    if key.ndim or jax.random.key_impl(key) != jax.random.key_impl(jax.random.key(0)):
        raise UserError(f"key has shape {list(key.shape)} and type {key.dtype}: {expected}")
    return np.asarray(jax.random.key_data(key))


def of_examples(numbers: jax.Array | np.ndarray, example: Int[Array, " r"]) -> Keys[Array, " r"]:
    """Return a key for each of the examples, from the key of these numbers and its position."""
    key = of(numbers)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(example)


def of(numbers: jax.Array | np.ndarray) -> jax.Array:
    """Return the key of these numbers, inside a compiled function too."""
    return jax.random.wrap_key_data(jnp.asarray(numbers))
