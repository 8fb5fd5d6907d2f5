"""The normaliser of a Gaussian on equally spaced levels, without an array over the levels.

What is wanted is log Σ_v exp(−½ρ²(u − v)²) over v in 0..levels−1, in units of the levels'
spacing, ρ being that spacing in standard deviations. With the nearest level n, δ = u − n and
j = v − n it is −½ρ²δ² + log S,

    S = Σ_j exp(−½ρ² j (j − 2δ)),

whose largest term is the one of j = 0, which is 1: nothing can overflow. A term needs no more
than a running sum, and far levels add nothing to it: |δ| ≤ ½ inside the range of levels, and
outside it every level lies on n's other side, so j (j − 2δ) ≥ |j| (|j| − 1) always, and the
levels with |j| > k together give to Σ_j jⁿ (…) no more than levelsⁿ⁺¹ exp(−½ρ² k (k + 1)).
`_half_width` is the least k for which that is below the precision of the type, relative to S ≥ 1.
At λ = 13.3 and 256 levels, ρ = 6, it is 1 in float32.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Moments = tuple[Float[Array, "*d"], ...]


def log_sum(
    delta: Float[Array, "*d"], nearest: Float[Array, "*d"], rho2: Float[Array, "..."], levels: int
) -> Float[Array, "*d"]:
    """Return log S with S = Σ_v exp(−½ρ² j (j − 2δ)), j = v − n, over the levels v.

    `delta` is δ and `nearest` the level n in 0..levels−1 nearest to u = n + δ; `rho2` is ρ², a
    scalar or of the same rank. Derivatives by δ and ρ² are moments of j, gathered in the same
    pass. Exact to rounding; the work is proportional to the number of levels that matter.
    """
    return jnp.log(_moments(delta, nearest, rho2, levels, 0)[0])


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _moments(
    delta: Float[Array, "*d"],
    nearest: Float[Array, "*d"],
    rho2: Float[Array, "..."],
    levels: int,
    order: int,
) -> Moments:
    """Return M_n = Σ_j jⁿ exp(−½ρ² j (j − 2δ)) for n = 0..order."""
    half_width = _half_width(jnp.min(rho2), levels, order)
    wide = 2.0 * half_width + 1.0
    # Where all levels count, each of them is passed once, not as a window's far half. And they
    # all do for a ρ that is not a number, which is none but its own example's.
    count = jnp.where(wide < levels, wide, levels)
    start = jnp.where(wide < levels, nearest - half_width, 0.0)

    def add(i: Array, sums: Moments) -> Moments:
        level = start + i.astype(delta.dtype)
        j = level - nearest
        term = jnp.exp(-0.5 * rho2 * j * (j - 2.0 * delta))
        term = jnp.where((level >= 0) & (level < levels), term, 0.0)
        return tuple(total + term * j**n for n, total in enumerate(sums))

    zeros = (jnp.zeros_like(delta),) * (order + 1)
    return jax.lax.fori_loop(0, count.astype(jnp.int32), add, zeros)


@_moments.defjvp
def _moments_jvp(
    levels: int,
    order: int,
    primals: tuple[Array, Array, Array],
    tangents: tuple[Array, Array, Array],
) -> tuple[Moments, Moments]:
    # A loop of unknown length has no reverse mode: dM_n/dδ = ρ² M_{n+1}, dM_n/dρ² =
    # −½ (M_{n+2} − 2δ M_{n+1}), and so on for derivatives of these.
    delta, _, rho2 = primals
    delta_dot, _, rho2_dot = tangents
    found = _moments(*primals, levels, order + 2)
    slopes = tuple(
        rho2 * first * delta_dot - 0.5 * (second - 2.0 * delta * first) * rho2_dot
        for first, second in itertools.pairwise(found[1:])
    )
    return found[: order + 1], slopes


def _half_width(rho2: Float[Array, ""], levels: int, order: int) -> Float[Array, ""]:
    """Return the least k with levelsⁿ⁺¹ exp(−½ρ² k (k + 1)) ≤ the precision of the type."""
    digits = (order + 1) * math.log(levels) - math.log(float(jnp.finfo(rho2.dtype).eps))
    return jnp.ceil(jnp.sqrt(0.25 + 2.0 * digits / rho2) - 0.5)
