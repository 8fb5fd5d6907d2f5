"""The VDM U-Net: many residual blocks at full resolution, no down-sampling."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.choices import unknown
from vdm.networks.blocks import AttentionBlock, ResBlock, conv, group_norm
from vdm.networks.condition import check_condition
from vdm.networks.embeddings import embed, fourier_features
from vdm.networks.fields import (
    DTypeLike,
    check_common,
    check_log_snr,
    check_positive,
    dtype_name,
)

ATTENTION = ("none", "middle", "everywhere")


class UNet(nn.Module):
    """The network of the VDM paper (appendix B); the defaults are its CIFAR-10 one.

    Takes z of shape [b, h, w, c], any size and number of channels, and returns an array
    of z's shape and dtype. There is no down-sampling: the bound is about single pixels.
    `num_blocks` residual blocks go down, each output is kept, the middle is block,
    attention, block, and `num_blocks` + 1 go up, each on what came before and the last
    output kept. A fresh network returns z where `residual` (ε̂ = z, as in the paper; made
    for the eps prediction) and 0 otherwise, the better start for x, v, score and edm.

    Fields: `channels` of every block, `num_blocks` a side, `fourier_exponents` n of the
    features sin, cos(2π 2ⁿ z) appended to z (empty for none), `attention` "none",
    "middle" or "everywhere", `num_groups` of GroupNorm, which must divide `channels`,
    `dropout` (only with train=True), `num_classes` for integer conditions [b] or
    `cond_dim` for float ones [b, cond_dim], `optional_cond` for examples that come
    without (see `condition`), `residual`, the range `log_snr_max`,
    `log_snr_min` on which λ is normalised, the compute `dtype`, parameters being float32
    always, and `remat`, which computes every block twice to spare its memory. Raises
    ValueError or TypeError for fields or inputs that do not fit.
    """

    channels: int = 128
    num_blocks: int = 32
    fourier_exponents: Sequence[int | float] = (6, 7)
    attention: str = "middle"
    num_groups: int = 32
    dropout: float = 0.1
    num_classes: int | None = None
    cond_dim: int | None = None
    optional_cond: bool = False
    residual: bool = True
    log_snr_max: float = 13.3
    log_snr_min: float = -5.0
    dtype: DTypeLike = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        # A list, as JSON gives it, would make the module unhashable.
        object.__setattr__(self, "fourier_exponents", tuple(self.fourier_exponents))
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        check_positive(
            channels=self.channels, num_blocks=self.num_blocks, num_groups=self.num_groups
        )
        if self.channels % self.num_groups:
            raise ValueError(
                "channels must be a multiple of num_groups: got "
                f"channels={self.channels}, num_groups={self.num_groups}"
            )
        if self.attention not in ATTENTION:
            raise ValueError(unknown("attention", self.attention, ATTENTION))
        check_common(
            num_classes=self.num_classes,
            cond_dim=self.cond_dim,
            optional_cond=self.optional_cond,
            dropout=self.dropout,
            log_snr_max=self.log_snr_max,
            log_snr_min=self.log_snr_min,
        )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        z: Float[Array, " b *d"],
        log_snr: Float[Array, " b"],
        cond: Array | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, " b *d"]:
        """Return the prediction at z and λ; `train` switches dropout on (rng "dropout").

        Raises ValueError unless z has shape [b, h, w, c] and λ shape [b], and ValueError
        or TypeError for a condition that the network was not built for.
        """
        if z.ndim != 4:
            hint = " (x[..., None] adds an axis of one channel)" if z.ndim == 3 else ""
            raise ValueError(
                f"UNet expects images z of shape [b, h, w, c]: got shape {z.shape}{hint}"
            )
        check_log_snr(log_snr, z)
        check_condition(cond, z.shape[0], self.num_classes, self.cond_dim, self.optional_cond)
        level = embed(
            log_snr,
            cond,
            features=self.channels,
            hidden=4 * self.channels,
            log_snr_max=self.log_snr_max,
            log_snr_min=self.log_snr_min,
            num_classes=self.num_classes,
            cond_dim=self.cond_dim,
            optional_cond=self.optional_cond,
            dtype=self.dtype,
        )

        # `train`, the third argument counted from the module itself, chooses the computation.
        kind = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock

        def block(name: str, h: Float[Array, " b h w c"]) -> Float[Array, " b h w channels"]:
            module = kind(self.channels, self.num_groups, self.dropout, self.dtype, name=name)
            return module(h, level, train)

        attention = nn.remat(AttentionBlock) if self.remat else AttentionBlock

        def attend(
            name: str, h: Float[Array, " b h w c"], wanted: bool
        ) -> Float[Array, " b h w c"]:
            return attention(self.num_groups, self.dtype, name=name)(h) if wanted else h

        everywhere = self.attention == "everywhere"
        # In z's own precision: bfloat16 would round away what these features show.
        inputs = z
        if self.fourier_exponents:
            features = fourier_features(z, self.fourier_exponents)
            inputs = jnp.concatenate([z, features], axis=-1)

        # The loop stays unrolled: XLA:CPU computes a convolution's weight gradient
        # 20 to 75 times slower inside scan (jax issue 12868).
        h = conv(self.channels, self.dtype, "conv_in")(inputs)
        kept = [h]
        for i in range(self.num_blocks):
            h = attend(f"down_attn_{i}", block(f"down_block_{i}", h), everywhere)
            kept.append(h)
        h = block("mid_block_1", h)
        h = attend("mid_attn_1", h, self.attention != "none")
        h = block("mid_block_2", h)
        for i in range(self.num_blocks + 1):
            h = block(f"up_block_{i}", jnp.concatenate([h, kept.pop()], axis=-1))
            h = attend(f"up_attn_{i}", h, everywhere)
        h = nn.swish(group_norm(self.num_groups, self.dtype, "norm_out")(h))
        h = conv(z.shape[-1], self.dtype, "conv_out", zero=True)(h).astype(z.dtype)
        return z + h if self.residual else h
