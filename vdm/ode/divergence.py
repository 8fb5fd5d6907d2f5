"""The trace of a denoiser's Jacobian: exact, or Hutchinson's estimate of it.

Both are sums of quadratic forms vᵀ (∂ε̂/∂z) v. The exact trace takes them at the D unit
vectors; with random probes of E[v vᵀ] = I a single one is an unbiased estimate
(Hutchinson 1990).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm import draws
from vdm.choices import choose

# Beyond this many dimensions the exact trace is refused: it costs D products where an
# evaluation costs one.
EXACT_LIMIT = 256


OneExample = Callable[[Float[Array, "*d"]], Float[Array, "*d"]]


def _exact(
    key: Key[Array, "..."], shape: tuple[int, ...], num_probes: int | None, dtype
) -> Float[Array, " b p *d"] | None:
    num_dims = math.prod(shape[1:])
    if num_probes is not None:
        raise ValueError(
            f"the exact divergence takes no probes: got num_probes={num_probes} "
            "(did you mean divergence='hutchinson'?)"
        )
    if num_dims > EXACT_LIMIT:
        raise ValueError(
            f"the exact divergence takes one product with the Jacobian per dimension and is "
            f"refused above {EXACT_LIMIT} dimensions: got {num_dims} "
            "(divergence='hutchinson' takes num_probes of them)"
        )
    return None


def _hutchinson(
    key: Key[Array, "..."], shape: tuple[int, ...], num_probes: int | None, dtype
) -> Float[Array, " b p *d"] | None:
    num_probes = 1 if num_probes is None else num_probes
    if not (isinstance(num_probes, int) and num_probes >= 1):
        raise ValueError(f"num_probes must be a whole number of at least 1: got {num_probes!r}")
    return draws.rademacher(key, (shape[0], num_probes, *shape[1:]), dtype)


DIVERGENCES = {"exact": _exact, "hutchinson": _hutchinson}


def draw_probes(
    key: Key[Array, "..."],
    shape: tuple[int, ...],
    *,
    divergence: str,
    num_probes: int | None,
    dtype,
) -> Float[Array, " b p *d"] | None:
    """Return the probes of one solve, entries ±1, or None where the trace is exact.

    `shape` is that of z, batch axis first. They are drawn once for a whole solve: a probe
    drawn anew in every evaluation would give an adaptive solver a field that is not
    continuous (Grathwohl et al. 2019, FFJORD). Raises ValueError for an unknown divergence,
    num_probes < 1, probes for the exact one, or more than 256 dimensions for it.
    """
    return choose("divergence", divergence, DIVERGENCES)(key, shape, num_probes, dtype)


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
