"""Random draws for a batch, keyed by one key or by one key per example.

With one key the batch is drawn as a whole; with keys of shape [b] row i depends on
key i alone, so a result does not change with the batch an example happens to be in.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key


def check_key(key: Array, batch_size: int) -> None:
    """Raise TypeError or ValueError unless key is one typed key or one per example."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"expected a typed key from jax.random.key(seed): got an array of {key.dtype}"
        )
    if key.shape not in ((), (batch_size,)):
        raise ValueError(
            f"expected one key or one per example, shape () or ({batch_size},): got {key.shape}"
        )


def split(key: Key[Array, "*b"], num: int) -> list[Key[Array, "*b"]]:
    """Return `num` keys of the given key's shape."""
    if key.ndim == 0:
        return list(jax.random.split(key, num))
    return list(jnp.moveaxis(jax.vmap(lambda k: jax.random.split(k, num))(key), 1, 0))


def fold_in(key: Key[Array, "*b"], data: int | Array) -> Key[Array, "*b"]:
    """Return keys of the same shape, each mixed with the integer `data`."""
    if key.ndim == 0:
        return jax.random.fold_in(key, data)
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(key, data)


def normal(
    key: Key[Array, "*b"], shape: tuple[int, ...], dtype: DTypeLike = float
) -> Float[Array, "..."]:
    """Return standard normal draws of the given shape, batch axis first."""
    if key.ndim == 0:
        return jax.random.normal(key, shape, dtype)
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:], dtype))(key)


def categorical(key: Key[Array, "*b"], logits: Float[Array, "..."]) -> Int[Array, "..."]:
    """Return indices into the last axis with probabilities ∝ exp(logits), batch axis first."""
    if key.ndim == 0:
        return jax.random.categorical(key, logits)
    return jax.vmap(jax.random.categorical)(key, logits)


def uniform(
    key: Key[Array, "*b"], shape: tuple[int, ...], dtype: DTypeLike = float
) -> Float[Array, "..."]:
    """Return draws from U[0, 1) of the given shape, batch axis first."""
    if key.ndim == 0:
        return jax.random.uniform(key, shape, dtype)
    return jax.vmap(lambda k: jax.random.uniform(k, shape[1:], dtype))(key)


def rademacher(
    key: Key[Array, "*b"], shape: tuple[int, ...], dtype: DTypeLike = float
) -> Float[Array, "..."]:
    """Return draws of ±1, each with probability ½, of the given shape, batch axis first."""
    if key.ndim == 0:
        return jax.random.rademacher(key, shape, dtype)
    return jax.vmap(lambda k: jax.random.rademacher(k, shape[1:], dtype))(key)
