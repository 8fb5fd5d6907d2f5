"""Self-attention with one head over all pixels, as it suits the devices it is compiled for."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jaxtyping import Array, Float

# Of one example and one piece; a piece of all 1,024 pixels of CIFAR-10 has as many.
MAX_LOGITS = 2**20


def attend(
    q: Float[Array, " b h w c"], k: Float[Array, " b h w c"], v: Float[Array, " b h w c"]
) -> Float[Array, " b h w c"]:
    """Return softmax(q kᵀ/√c) v over the h·w pixels (Vaswani et al. 2017, eq. 1).

    Logits and softmax are float32 at least. The queries are taken a piece at a time, and the
    backward pass computes a piece's weights again: b·(h·w)² of them are never kept. A piece is as
    large as `MAX_LOGITS` allows; on CPUs it is small, so that its weights stay in the caches.
    The platform is that of the devices compiled for, and their number that of the mesh that
    tracing takes place under (`jax.sharding.use_abstract_mesh`), one without a mesh.
    """
    shape = q.shape

    def on_cpu(q: Array, k: Array, v: Array) -> Array:
        # An example is a piece: nothing has to be added over pieces. But examples are what a
        # batch is cut along over devices.
        return _by_queries(q, k, v, shape[2]) if _several() else _by_example(q, k, v)

    def elsewhere(q: Array, k: Array, v: Array) -> Array:
        return _by_queries(q, k, v, _queries(shape[1], shape[2]))

    of_pixels = (_pixels(part) for part in (q, k, v))
    return jax.lax.platform_dependent(*of_pixels, cpu=on_cpu, default=elsewhere).reshape(shape)


def _several() -> bool:
    """Return whether the batch may be cut over devices here, other than by `jax.shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return any(size > 1 for size, kind in sizes if kind is not AxisType.Manual)


def _queries(height: int, width: int) -> int:
    """Return how many queries a piece has: whole rows of pixels that divide the image."""
    rows = [n for n in range(1, height + 1) if height % n == 0]
    fitting = [n for n in rows if n * width * height * width <= MAX_LOGITS]
    return width * max(fitting, default=1)


def _by_example(
    q: Float[Array, " b n c"], k: Float[Array, " b n c"], v: Float[Array, " b n c"]
) -> Float[Array, " b n c"]:
    piece = _piece(q.shape[-1])
    parts = (part[:, None] for part in (q, k, v))
    return jax.lax.map(lambda part: piece(*part), tuple(parts))[:, 0]


def _by_queries(
    q: Float[Array, " b n c"], k: Float[Array, " b n c"], v: Float[Array, " b n c"], size: int
) -> Float[Array, " b n c"]:
    piece = _piece(q.shape[-1])
    if size == q.shape[1]:
        return piece(q, k, v)
    pieces = jnp.moveaxis(q.reshape(q.shape[0], -1, size, q.shape[2]), 1, 0)
    mixed = jax.lax.map(lambda queries: piece(queries, k, v), pieces)
    return jnp.moveaxis(mixed, 0, 1).reshape(q.shape)


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


def _pixels(image: Float[Array, " b h w c"]) -> Float[Array, " b n c"]:
    batch, height, width, channels = image.shape
    return image.reshape(batch, height * width, channels)
