"""Self-attention with one head over all pixels, as it suits the machine."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attend(
    q: Float[Array, " b h w c"], k: Float[Array, " b h w c"], v: Float[Array, " b h w c"]
) -> Float[Array, " b h w c"]:
    """Return softmax(q kᵀ/√c) v over the h·w pixels (Vaswani et al. 2017, eq. 1).

    Logits and softmax are float32 at least. A CPU takes the queries a piece at a time and
    computes the weights again in the backward pass: those of a piece are in its caches, where
    b·(h·w)² of them would go through its memory several times. What counts as the machine is
    JAX's default backend when the function is traced.
    """
    # The softmax of jax.nn.dot_product_attention is float32 in float64 too.
    if jax.default_backend() == "cpu" or q.dtype == jnp.float64:
        return _by_pieces(q, k, v)
    heads = (_pixels(part)[:, :, None] for part in (q, k, v))
    return jax.nn.dot_product_attention(*heads).reshape(q.shape)


def _by_pieces(
    q: Float[Array, " b h w c"], k: Float[Array, " b h w c"], v: Float[Array, " b h w c"]
) -> Float[Array, " b h w c"]:
    scale, keys, values = 1.0 / math.sqrt(q.shape[-1]), _pixels(k), _pixels(v)

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

    if jax.device_count() == 1:  # an example is a piece: nothing has to be added over pieces
        parts = (part[:, None] for part in (_pixels(q), keys, values))
        return jax.lax.map(lambda part: piece(*part), tuple(parts)).reshape(q.shape)
    # Rows, unlike examples, are not what a batch is cut along over devices.
    rows = jax.lax.map(lambda row: piece(row, keys, values), jnp.moveaxis(q, 1, 0))
    return jnp.moveaxis(rows, 0, 1)


def _pixels(image: Float[Array, " b h w c"]) -> Float[Array, " b n c"]:
    batch, height, width, channels = image.shape
    return image.reshape(batch, height * width, channels)
