"""A checksum of a training state: what is read is what was written, or is an error.

The checkpoint's format guards its index, but a flipped bit of the numbers themselves can be
read as another number. Sums of integers modulo 2³² do not depend on their order, so the
checksum is the same however the arrays are laid out over devices.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def checksum(tree: object) -> np.ndarray:
    """Return a 32-bit checksum of all arrays of a tree; one changed word always changes it."""
    # Leaf by leaf: every model has few different shapes to compile. And one after the other: sums
    # at the same time, of leaves that several processes share, may wait for each other.
    total = 0
    for leaf in jax.tree.leaves(tree):
        total = (total * 0x01000193 + int(_of_leaf(leaf))) % 2**32  # an odd factor loses no bit
    return np.asarray(total, np.uint32)


@jax.jit
def _of_leaf(leaf: jax.Array) -> jax.Array:
    words = _words(leaf)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    # Weights without a pattern (the steps of a hash), for exchanged numbers to be noticed; and
    # odd, since such weights have inverses modulo 2³²: no change of a single word is lost.
    weight = place * jnp.uint32(0x9E3779B1)
    weight = (weight ^ (weight >> 15)) * jnp.uint32(0x85EBCA6B)
    return jnp.sum(words * ((weight ^ (weight >> 13)) | 1), dtype=jnp.uint32)


def _words(leaf: jax.Array) -> jax.Array:
    """Return the bits of an array as unsigned words of at most 32 bits."""
    if leaf.dtype == bool:
        return leaf.astype(jnp.uint32)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    return lax.bitcast_convert_type(leaf, word).astype(jnp.uint32)
