"""Self-attention with one head over all positions, as it suits the devices it is compiled for."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jaxtyping import Array, Float

# Of one example and one piece; a piece of all 1,024 pixels of CIFAR-10 has as many.
MAX_LOGITS = 2**20
# On CPUs, of one example; 4,096 positions have as many, in float32 64 MiB.
MAX_LOGITS_OF_AN_EXAMPLE = 2**24


def attend(
    q: Float[Array, " b *d c"], k: Float[Array, " b *d c"], v: Float[Array, " b *d c"]
) -> Float[Array, " b *d c"]:
    """Return softmax(q kᵀ/√c) v over all n positions of *d (Vaswani et al. 2017, eq. 1).

    Logits and softmax are float32 at least. The queries are taken a piece at a time, and the
    backward pass computes a piece's weights again: b·n² of them are never kept. A piece is as
    large as `MAX_LOGITS` allows; on CPUs it is an example, or less of one with more than
    `MAX_LOGITS_OF_AN_EXAMPLE` pairs.
    The platform is that of the devices compiled for, and their number that of the mesh that
    tracing takes place under (`jax.sharding.use_abstract_mesh`), one without a mesh.
    """
    shape = q.shape
    size = _queries(math.prod(shape[1:-1]))

    def on_cpu(q: Array, k: Array, v: Array) -> Array:
        # An example is a piece: nothing has to be added over pieces. But examples are what a
        # batch is cut along over devices.
        return _by_queries(q, k, v, min(size, shape[-2])) if _several() else _by_example(q, k, v)

    def elsewhere(q: Array, k: Array, v: Array) -> Array:
        return _by_queries(q, k, v, size)

    of_positions = (part.reshape(shape[0], -1, shape[-1]) for part in (q, k, v))
    return jax.lax.platform_dependent(*of_positions, cpu=on_cpu, default=elsewhere).reshape(shape)


def _several() -> bool:
    """Return whether the batch may be cut over devices here, other than by `jax.shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return any(size > 1 for size, kind in sizes if kind is not AxisType.Manual)


def _queries(positions: int, most: int = MAX_LOGITS) -> int:
    """Return how many queries a piece has: as few pieces as there can be, of even size."""
    pieces = -(-positions // min(positions, max(1, most // positions)))
    return -(-positions // pieces)


def _by_example(
    q: Float[Array, " b n c"], k: Float[Array, " b n c"], v: Float[Array, " b n c"]
) -> Float[Array, " b n c"]:
    size = _queries(q.shape[1], MAX_LOGITS_OF_AN_EXAMPLE)

    def one(parts: tuple[Array, Array, Array]) -> Array:
        q, k, v = parts
        return _by_queries(q, k, v, size)

    return jax.lax.map(one, (q[:, None], k[:, None], v[:, None]))[:, 0]


def _by_queries(
    q: Float[Array, " b n c"], k: Float[Array, " b n c"], v: Float[Array, " b n c"], size: int
) -> Float[Array, " b n c"]:
    """Return the attention of `size` queries at a time, the last piece filled up with zeros."""
    batch, positions, channels = q.shape
    piece = _piece(channels)
    if size == positions:
        return piece(q, k, v)
    filled = jnp.pad(q, ((0, 0), (0, -positions % size), (0, 0)))
    pieces = jnp.moveaxis(filled.reshape(batch, -1, size, channels), 1, 0)
    mixed = jax.lax.map(lambda queries: piece(queries, k, v), pieces)
    return jnp.moveaxis(mixed, 0, 1).reshape(filled.shape)[:, :positions]


def _piece(channels: int) -> Callable[[Array, Array, Array], Array]:
    scale = 1.0 / math.sqrt(channels)

    @jax.checkpoint
    def piece(
        queries: Float[Array, " b q c"],
        keys: Float[Array, " b k c"],
        values: Float[Array, " b k c"],
    ) -> Float[Array, " b q c"]:
        wide = jnp.promote_types(queries.dtype, jnp.float32)
        logits = scale * jnp.einsum("bqc,bkc->bqk", queries, keys, preferred_element_type=wide)
        # Shifted by any number the result is the same: no derivative goes through it.
        peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        weights = jnp.exp(logits - peak)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed = jnp.einsum(
            "bqk,bkc->bqc", weights.astype(queries.dtype), values, preferred_element_type=wide
        )
        return (mixed / total).astype(queries.dtype)

    return piece
