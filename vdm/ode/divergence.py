"""The trace of a denoiser's Jacobian: exact, or Hutchinson's estimate of it.

Both are sums of quadratic forms vᵀ (∂ε̂/∂z) v. The exact trace takes them at the D unit
vectors; with random probes of E[v vᵀ] = I a single one is an unbiased estimate
(Hutchinson 1990).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from vdm import draws
from vdm.choices import choose
from vdm.ode.options import Divergence, Hutchinson

# Beyond this many dimensions the exact trace is refused: it costs D products where an
# evaluation costs one.
EXACT_LIMIT = 256

DIVERGENCES: dict[str, Hutchinson | None] = {"exact": None, "hutchinson": Hutchinson()}

OneExample = Callable[[Float[Array, "*d"]], Float[Array, "*d"]]


def draw_probes(
    key: Key[Array, "..."], shape: tuple[int, ...], divergence: Divergence, dtype: DTypeLike
) -> Float[Array, " b p *d"] | None:
    """Return the probes of one solve, entries ±1, or None where the trace is exact.

    `shape` is that of z, batch axis first. The probes are drawn once for a whole solve:
    with a new one in every evaluation an adaptive solver would have a field that is not
    continuous (Grathwohl et al. 2019, FFJORD). Raises ValueError for an unknown divergence,
    and for the exact one above 256 dimensions.
    """
    estimate = (
        divergence
        if isinstance(divergence, Hutchinson)
        else choose("divergence", divergence, DIVERGENCES)
    )
    if estimate is not None:
        return draws.rademacher(key, (shape[0], estimate.num_probes, *shape[1:]), dtype)
    num_dims = math.prod(shape[1:])
    if num_dims > EXACT_LIMIT:
        raise ValueError(
            "the exact divergence takes one product with the Jacobian per dimension, so it is "
            f"limited to {EXACT_LIMIT} dimensions: got {num_dims} (divergence='hutchinson' takes "
            "one product per probe)"
        )
    return None


def value_and_traces(
    fn: OneExample, z: Float[Array, "*d"], probes: Float[Array, " p *d"] | None
) -> tuple[Float[Array, "*d"], Float[Array, " n"]]:
    """Return fn(z) and the exact trace of its Jacobian, n = 1, or one estimate per probe, n = p.

    The products are taken in forward mode, and in reverse mode where a part of fn has only
    that (`jax.custom_vjp`).
    """
    vectors = probes
    if vectors is None:
        vectors = jnp.eye(z.size, dtype=z.dtype).reshape(z.size, *z.shape)
    try:
        # XLA:CPU takes ten times as long for a convolution's reverse mode inside a loop.
        value, linear = jax.linearize(fn, z)
        products = jax.vmap(linear)(vectors)
    except TypeError:  # of a custom_vjp; one that is fn's own comes up again
        value, pull = jax.vjp(fn, z)
        (products,) = jax.vmap(pull)(vectors)
    forms = jnp.sum(vectors * products, axis=tuple(range(1, vectors.ndim)))
    return value, jnp.sum(forms, keepdims=True) if probes is None else forms
