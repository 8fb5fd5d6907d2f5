"""The two building blocks of the U-Net: residual convolutions and attention over positions."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm.networks.attention import attend
from vdm.networks.convolution import Conv
from vdm.networks.fields import DTypeLike


def group_norm(num_groups: int, dtype: DTypeLike, name: str) -> nn.GroupNorm:
    """Return GroupNorm with ε = 1e-6; its statistics are float32 at least, whatever the dtype."""
    return nn.GroupNorm(num_groups=num_groups, epsilon=1e-6, dtype=dtype, name=name)


class ResBlock(nn.Module):
    """Two convolutions on a residual path, the second given the noise level's embedding.

    h + conv2(dropout(swish(norm2(conv1(swish(norm1 h)) + cond_proj(level))))), with a
    dense `nin_shortcut` for h where the number of channels changes. conv2 and cond_proj
    start at zero (VDM, appendix B, after Ho et al. 2020). `padding` has a word for each spatial
    axis of h. The key of dropout is the given one, or else that of the rng "dropout".
    """

    channels: int
    padding: tuple[str, ...]
    num_groups: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        h: Float[Array, " b *d c"],
        level: Float[Array, " b e"],
        train: bool,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, " b *d channels"]:
        r = nn.swish(group_norm(self.num_groups, self.dtype, "norm1")(h))
        r = Conv(self.channels, self.padding, self.dtype, name="conv1")(r)
        zeros = nn.initializers.zeros
        shift = nn.Dense(
            self.channels,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=zeros,
            name="cond_proj",
        )(level)
        r += jnp.expand_dims(shift, range(1, r.ndim - 1))
        r = nn.swish(group_norm(self.num_groups, self.dtype, "norm2")(r))
        r = nn.Dropout(self.dropout, deterministic=not train)(r, rng=key)
        r = Conv(self.channels, self.padding, self.dtype, kernel_init=zeros, name="conv2")(r)
        if h.shape[-1] != self.channels:
            h = nn.Dense(self.channels, dtype=self.dtype, name="nin_shortcut")(h)
        return h + r


class AttentionBlock(nn.Module):
    """Self-attention with one head over all positions, on a residual path that starts at zero.

    h + proj_out(softmax(q kᵀ/√c) v), with q, k, v dense in norm(h)
    (Vaswani et al. 2017, eq. 1).
    """

    num_groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, h: Float[Array, " b *d c"]) -> Float[Array, " b *d c"]:
        channels = h.shape[-1]
        normed = group_norm(self.num_groups, self.dtype, "norm")(h)
        q, k, v = (
            nn.Dense(channels, dtype=self.dtype, name=name)(normed) for name in ("q", "k", "v")
        )
        mixed = attend(q, k, v)
        zeros = nn.initializers.zeros
        return h + nn.Dense(channels, dtype=self.dtype, kernel_init=zeros, name="proj_out")(mixed)
