"""Blocks of a transformer that the noise level modulates, and attention with several heads."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vdm.networks.attention import attend
from vdm.networks.fields import DTypeLike
from vdm.networks.positions import turned, turns

MLP_RATIO = 4
# So many tokens have all their weights in memory at once; of more, a piece at a time.
PLAIN_TOKENS = 256


def multi_head(
    q: Float[Array, " b n heads c"],
    k: Float[Array, " b n heads c"],
    v: Float[Array, " b n heads c"],
    mask: Bool[Array, " b n"] | None = None,
    bias: Float[Array, " b n n heads"] | None = None,
) -> Float[Array, " b n heads c"]:
    """Return softmax(q kᵀ/√c + bias) v over the n tokens, for every head (Vaswani 2017, §3.2).

    With a mask it is over those of the tokens where it is True, all of them in memory at once. Only
    then there may be a bias, of every token (the second axis) for every other.

    Logits and softmax are float32 at least. Of more than `PLAIN_TOKENS` tokens the weights are
    computed in pieces, and again in the backward pass, as `vdm.networks.attention.attend` does.
    """
    assert bias is None or mask is not None
    if q.shape[1] > PLAIN_TOKENS and mask is None:
        b, n, heads, c = q.shape
        # A head of an example is an example to `attend`, which on CPUs takes one after the other.
        of_heads = (jnp.moveaxis(part, 2, 1).reshape(b * heads, n, c) for part in (q, k, v))
        return jnp.moveaxis(attend(*of_heads).reshape(b, heads, n, c), 1, 2)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=wide)
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, -jnp.inf)
    logits = logits / math.sqrt(q.shape[-1])
    if bias is not None:
        logits = logits + jnp.moveaxis(bias, 3, 1)
    weights = jax.nn.softmax(logits, axis=-1)
    mixed = jnp.einsum("bhqk,bkhc->bqhc", weights.astype(q.dtype), v, preferred_element_type=wide)
    return mixed.astype(q.dtype)


def modulated(
    h: Float[Array, " b n c"],
    scale: Float[Array, " b c"],
    shift: Float[Array, " b c"],
    dtype: DTypeLike,
) -> Float[Array, " b n c"]:
    """Return norm(h)·(1 + scale) + shift, the norm without parameters of its own (adaLN)."""
    norm = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=dtype)
    return norm(h) * (1 + scale[:, None]) + shift[:, None]


def modulation(
    level: Float[Array, " b e"], count: int, channels: int, dtype: DTypeLike
) -> list[Float[Array, " b c"]]:
    """Return `count` vectors [b, channels] that start at zero, linear in the level's embedding."""
    zeros = nn.initializers.zeros
    layer = nn.Dense(count * channels, dtype=dtype, kernel_init=zeros, name="modulation")
    return jnp.split(layer(level), count, axis=-1)


class Attention(nn.Module):
    """Self-attention over the tokens of a grid: proj_out(multi_head(q, k, v)) of dense q, k, v.

    Along axes that close q and k are turned by their places (`vdm.networks.positions.turns`).
    """

    num_heads: int
    sizes: tuple[int, ...]
    padding: tuple[str, ...]
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        h: Float[Array, " b n c"],
        mask: Bool[Array, " b n"] | None = None,
        bias: Float[Array, " b n n heads"] | None = None,
    ) -> Float[Array, " b n c"]:
        b, n, channels = h.shape
        angles = turns(self.sizes, self.padding, channels // self.num_heads // 2)
        qkv = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(h)
        q, k, v = (part.reshape(b, n, self.num_heads, -1) for part in jnp.split(qkv, 3, axis=-1))
        mixed = multi_head(turned(q, angles), turned(k, angles), v, mask, bias).reshape(h.shape)
        return nn.Dense(channels, dtype=self.dtype, name="proj_out")(mixed)


class TransformerBlock(nn.Module):
    """One block of a DiT with adaLN-zero (Peebles & Xie 2023, figure 3).

    h + gate₁·attention(adaLN₁ h), then h + gate₂·dense2(dropout(gelu(dense1(adaLN₂ h)))), with
    4 times as many channels between dense1 and dense2. Scales, shifts and gates are linear in the
    level's embedding and start at zero: a fresh block returns h.
    """

    num_heads: int
    sizes: tuple[int, ...]
    padding: tuple[str, ...]
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        h: Float[Array, " b n c"],
        level: Float[Array, " b e"],
        train: bool,
        mask: Bool[Array, " b n"] | None = None,
        pairs: Float[Array, " b n n features"] | None = None,
    ) -> Float[Array, " b n c"]:
        channels = h.shape[-1]
        parts = modulation(level, 6, channels, self.dtype)
        scale1, shift1, gate1, scale2, shift2, gate2 = parts
        attention = Attention(
            self.num_heads, self.sizes, self.padding, self.dtype, name="attention"
        )
        bias = None
        if pairs is not None:
            zeros = nn.initializers.zeros
            dense = nn.Dense(self.num_heads, dtype=self.dtype, kernel_init=zeros, name="pairs")
            bias = dense(pairs)
        h = h + gate1[:, None] * attention(modulated(h, scale1, shift1, self.dtype), mask, bias)
        r = modulated(h, scale2, shift2, self.dtype)
        r = nn.gelu(nn.Dense(MLP_RATIO * channels, dtype=self.dtype, name="dense1")(r))
        r = nn.Dropout(self.dropout, deterministic=not train)(r)
        return h + gate2[:, None] * nn.Dense(channels, dtype=self.dtype, name="dense2")(r)
