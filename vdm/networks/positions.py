"""Where a token is: fixed positions along axes with ends, turns along axes that close.

Along an axis with ends (padding "zero") a token is given sines and cosines of its place. Along one
that closes (padding "wrap") there is no first place: only the difference of two places may count,
modulo the length, and it is what the queries and keys of attention are turned by.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def absolute(
    sizes: Sequence[int], padding: Sequence[str], features: int
) -> Float[np.ndarray, " n features"]:
    """Return sines and cosines of the places along the axes with ends, [n, features].

    The n tokens of a grid of `sizes` are in row-major order. Each of these axes has an equal share
    of the features: sines, then cosines, of p·10⁻⁴ʲᐟᵐ for j in 0..m−1 and places p = 0, 1, …
    (Vaswani et al. 2017; on a grid as in Peebles & Xie 2023). What is left over is zero, and so is
    everything where all axes close.
    """
    ends = [axis for axis, word in enumerate(padding) if word == "zero"]
    count = features // (2 * len(ends)) if ends else 0
    places = _places(sizes)
    parts = [np.zeros((len(places), features - 2 * count * len(ends)))]
    for axis in reversed(ends):
        angles = places[:, axis, None] * 1e-4 ** (np.arange(count) / max(count, 1))
        parts[:0] = [np.sin(angles), np.cos(angles)]
    return np.concatenate(parts, axis=1)


def turns(
    sizes: Sequence[int], padding: Sequence[str], pairs: int
) -> Float[np.ndarray, " n pairs"] | None:
    """Return the angles by which the pairs of a head's channels are turned, [n, pairs].

    Each axis that closes has an equal share of the pairs. Along one of n places, place p is turned
    by 2π k p/n, with whole k that rise geometrically from 1 to n/2: as rotary positions (Su et al.
    2021), but a logit depends on the difference of two places modulo n, exactly. The pairs left
    over are not turned. None where no axis closes.
    """
    closed = [axis for axis, word in enumerate(padding) if word == "wrap"]
    if not closed:
        return None
    count, places = pairs // len(closed), _places(sizes)
    angles = np.zeros((len(places), pairs))
    for i, axis in enumerate(closed):
        n = sizes[axis]
        k = np.rint(np.geomspace(1, max(n // 2, 1), count)).astype(int)
        # In whole numbers, modulo n: the angle of p + n is that of p to the last digit.
        share = (places[:, axis, None] * k) % n
        angles[:, i * count : (i + 1) * count] = 2 * math.pi * share / n
    return angles


def turned(
    x: Float[Array, " b n heads c"], angles: Float[np.ndarray, " n pairs"] | None
) -> Float[Array, " b n heads c"]:
    """Return x with channels j and j + c/2 of every head turned by angle j, in float32 at least."""
    if angles is None:
        return x
    wide = jnp.promote_types(x.dtype, jnp.float32)
    cos, sin = (jnp.asarray(fn(angles), wide)[None, :, None, :] for fn in (np.cos, np.sin))
    one, other = jnp.split(x.astype(wide), 2, axis=-1)
    both = jnp.concatenate([one * cos - other * sin, one * sin + other * cos], axis=-1)
    return both.astype(x.dtype)


def _places(sizes: Sequence[int]) -> np.ndarray:
    """Return the place of every token along every axis, [n, axes]."""
    return np.stack([grid.ravel() for grid in np.indices(tuple(sizes))], axis=1)
