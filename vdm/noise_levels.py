"""Where along the process to look: how the times of a batch are drawn.

Each function gives times in [0, 1) whose marginal law is uniform, so each leaves the
mean of the T = ∞ bound unchanged; they differ in its variance.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def uniform(key: Key[Array, ""], n: int) -> Float[Array, " n"]:
    """Return n independent times, t_i ~ U[0, 1)."""
    return jax.random.uniform(key, (n,), float)


def low_discrepancy(key: Key[Array, ""], n: int) -> Float[Array, " n"]:
    """Return n evenly spaced times with one random offset, t_i = frac(u + i/n).

    Each t_i is uniform by itself and together they cover the interval evenly, which
    takes most of the time's share out of the batch estimate's variance
    (VDM, appendix I.1).
    """
    offset = jax.random.uniform(key, (), float)
    # An integer arange: arange(0, 1, 1/n) has n + 1 entries at n = 49, 98, 103, ...
    return jnp.mod(offset + jnp.arange(n) / n, 1.0)


def stratified(key: Key[Array, ""], n: int) -> Float[Array, " n"]:
    """Return one independent time in each of n equal strata, t_i = (i + u_i)/n."""
    return (jnp.arange(n) + jax.random.uniform(key, (n,), float)) / n
