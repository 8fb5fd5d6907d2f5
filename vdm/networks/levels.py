"""The coarser resolutions of a network: each halves every axis of the one before."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def check_levels(levels: Sequence[int]) -> None:
    """Raise ValueError unless `levels` is a sequence of whole numbers of at least 1."""
    listed = isinstance(levels, tuple | list)
    if not listed or any(not isinstance(n, int) or n < 1 for n in levels):
        raise ValueError(
            "levels must be a sequence of the number of blocks at each coarser resolution, whole "
            f"numbers of at least 1, () for none: got {levels!r}"
        )


def check_size(network: str, levels: Sequence[int], size: tuple[int, ...]) -> None:
    """Raise ValueError unless every axis of that size can be halved once for each level."""
    step = 2 ** len(levels)
    if not all(size):
        raise ValueError(f"{network} expects at least one position along every axis: got {size}")
    if all(n % step == 0 for n in size):
        return
    above = [max(1, -(-n // step)) * step for n in size]
    below = [max(1, n // step) * step for n in size]
    near = list(dict.fromkeys("×".join(map(str, fitting)) for fitting in (below, above)))
    raise ValueError(
        f"{network}(levels={tuple(levels)}) halves every axis {len(levels)} times, which takes "
        f"sizes that are multiples of {step}, such as {' or '.join(near)}: got "
        + "×".join(map(str, size))
    )


def doubled(h: Float[Array, " b *d c"]) -> Float[Array, " b *e c"]:
    """Return h with every position repeated once along every axis: the nearest neighbour's."""
    for axis in range(1, h.ndim - 1):
        h = jnp.repeat(h, 2, axis=axis)
    return h
