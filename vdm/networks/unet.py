"""The VDM U-Net: many residual blocks at full resolution, and where asked some at coarser ones."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.choices import unknown
from vdm.condition import Condition
from vdm.networks import stacked, wiener
from vdm.networks.axes import check_axes, check_rank, each_axis
from vdm.networks.blocks import AttentionBlock, ResBlock, group_norm
from vdm.networks.condition import Kinds, check_kinds, checked
from vdm.networks.convolution import Conv
from vdm.networks.embeddings import embed, inputs
from vdm.networks.fields import (
    DTypeLike,
    check_common,
    check_log_snr,
    check_positive,
    dtype_name,
)
from vdm.networks.levels import check_levels, check_size, doubled

ATTENTION = ("none", "middle", "everywhere")


class UNet(nn.Module):
    """The network of the VDM paper (appendix B); the defaults are its CIFAR-10 one.

    Takes z of shape [b, *size, c], with `axes` spatial axes of any size and any number of channels,
    and returns an array of z's shape and dtype. `num_blocks` residual blocks go down, each output
    is kept, the middle is block, attention, block, and `num_blocks` + 1 go up, each on what came
    before and the last output kept. A fresh network returns z where `residual` (ε̂ = z, as in the
    paper; made for the eps prediction) and 0 otherwise, the better start for x, v, score and edm.

    In the paper there is no down-sampling: the bound is about single pixels. With `levels`, of as
    many blocks as each number says, the middle is one or more resolutions further down: a strided
    convolution halves every axis, blocks go down, what follows is the next resolution or the
    middle, blocks go up, one more of them, and the nearest neighbour and a convolution double every
    axis, all between the blocks down and up at full resolution. The number of channels is the same
    everywhere, so that a block costs 2^axes times less at each resolution, and so do the weights of
    attention, its square: the blocks at full resolution remain most of the work.

    `padding` says what a convolution finds beyond the ends of an axis: "zero" for zeros, "wrap" for
    the other end, as in a periodic field, or a tuple of one of them for each axis. Wrapped, the
    network commutes with every shift along the axis; with levels only with shifts by multiples of
    2^len(levels), which sizes must be multiples of.

    With `wiener` "stationary" or "full" the network is also given the best linear estimate of x,
    for which it needs the data's mean and covariance (see `vdm.networks.wiener`). With "full" it
    does not commute with shifts.

    Fields: `channels` of every block, `num_blocks` a side, `fourier_exponents` n of the
    features sin, cos(2π 2ⁿ z) appended to z (empty for none), `attention` "none",
    "middle" or "everywhere", `num_groups` of GroupNorm, which must divide `channels`,
    `dropout` (only with train=True), the conditions, any of `num_classes` for integers [b],
    `cond_dim` for vectors [b, cond_dim] and `cond_channels` for fields [b, *size, cond_channels],
    `optional_cond` for examples that come without (see `vdm.condition`), `residual`, the range
    `log_snr_max`, `log_snr_min` on which λ is normalised, the compute `dtype`, parameters being
    float32 always, `remat`, which computes every block twice to spare its memory, `axes` from 1 to
    3, `padding`, `levels` and `wiener`. Parameters that `stacked.stack` has rearranged give the
    same function, compiled as a scan over equal blocks, those at full resolution. Raises ValueError
    or TypeError for fields or inputs that do not fit.
    """

    channels: int = 128
    num_blocks: int = 32
    fourier_exponents: Sequence[int | float] = (6, 7)
    attention: str = "middle"
    num_groups: int = 32
    dropout: float = 0.1
    num_classes: int | None = None
    cond_dim: int | None = None
    cond_channels: int | None = None
    optional_cond: bool = False
    residual: bool = True
    log_snr_max: float = 13.3
    log_snr_min: float = -5.0
    dtype: DTypeLike = "float32"
    remat: bool = False
    axes: int = 2
    padding: str | Sequence[str] = "zero"
    levels: Sequence[int] = ()
    wiener: str = "none"

    def __post_init__(self) -> None:
        check_axes(self.axes)
        check_levels(self.levels)
        # A list, as JSON gives it, would make the module unhashable.
        each = each_axis(self.padding, self.axes)
        object.__setattr__(self, "padding", self.padding if isinstance(self.padding, str) else each)
        object.__setattr__(self, "levels", tuple(self.levels))
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
        check_kinds(self._kinds)
        check_common(
            dropout=self.dropout,
            log_snr_max=self.log_snr_max,
            log_snr_min=self.log_snr_min,
        )
        wiener.check_kind(self.wiener)
        super().__post_init__()

    @property
    def _kinds(self) -> Kinds:
        return Kinds(self.num_classes, self.cond_dim, self.cond_channels, self.optional_cond)

    @property
    def wiener_padding(self) -> tuple[str, ...]:
        """The padding of each axis, by which a stationary filter goes."""
        return each_axis(self.padding, self.axes)

    @nn.compact
    def __call__(
        self,
        z: Float[Array, " b *d"],
        log_snr: Float[Array, " b"],
        cond: Condition | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, " b *d"]:
        """Return the prediction at z and λ; `train` switches dropout on (rng "dropout").

        Raises ValueError unless z has shape [b, *size, c] with sizes that the levels can halve
        and λ shape [b], and ValueError or TypeError for a condition that the network was not built
        for.
        """
        check_rank("UNet", self.axes, z.shape)
        check_size("UNet", self.levels, z.shape[1:-1])
        check_log_snr(log_snr, z)
        padding = self.wiener_padding
        conditions = checked(cond, z.shape, self._kinds)
        level = embed(
            log_snr,
            conditions,
            self._kinds,
            features=self.channels,
            hidden=4 * self.channels,
            log_snr_max=self.log_snr_max,
            log_snr_min=self.log_snr_min,
            dtype=self.dtype,
        )

        # `train`, the third argument counted from the module itself, chooses the computation.
        kind = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock

        def block(name: str, h: Float[Array, " b *d c"]) -> Float[Array, " b *d channels"]:
            module = kind(
                self.channels, padding, self.num_groups, self.dropout, self.dtype, name=name
            )
            return module(h, level, train)

        attention = nn.remat(AttentionBlock) if self.remat else AttentionBlock

        def attend(name: str, h: Float[Array, " b *d c"], wanted: bool) -> Float[Array, " b *d c"]:
            return attention(self.num_groups, self.dtype, name=name)(h) if wanted else h

        def conv(features: int, name: str, **options: Any) -> Conv:
            return Conv(features, padding, self.dtype, name=name, **options)

        everywhere = self.attention == "everywhere"
        seen = inputs(
            z,
            conditions.field,
            self.fourier_exponents,
            self._kinds,
            wiener.estimated(self.wiener, padding, z, log_snr),
        )

        # Parameters of either layout are taken. A fresh network is not scanned: XLA:CPU computes a
        # convolution's weight gradient 20 to 75 times slower inside scan (jax issue 12868).
        scanned = self.has_variable("params", stacked.name("down", "block"))
        h = conv(self.channels, "conv_in")(seen)
        counts = (self.num_blocks, *self.levels)

        def through(
            resolution: int, h: Float[Array, " b *d channels"]
        ) -> Float[Array, " b *d channels"]:
            """Return h after all blocks at a resolution, those at the coarser ones in between."""
            prefix = f"level_{resolution}_" if resolution else ""
            in_scan = scanned and not resolution
            count = 0 if in_scan else counts[resolution]
            kept: list[Array] = []  # what each block down was given
            given = None  # the same, all in one
            if in_scan:
                h, given = self._scan("down", h, None, level, train)
            for i in range(count):
                kept.append(h)
                h = block(f"{prefix}down_block_{i}", h)
                h = attend(f"{prefix}down_attn_{i}", h, everywhere)
            last = h
            if resolution == len(self.levels):
                h = block("mid_block_1", h)
                h = attend("mid_attn_1", h, self.attention != "none")
                h = block("mid_block_2", h)
            else:
                coarser = f"level_{resolution + 1}"
                h = conv(self.channels, f"{coarser}_conv_down", stride=2)(h)
                h = doubled(through(resolution + 1, h))
                h = conv(self.channels, f"{coarser}_conv_up")(h)
            h = block(f"{prefix}up_block_0", jnp.concatenate([h, last], axis=-1))
            h = attend(f"{prefix}up_attn_0", h, everywhere)
            if in_scan:
                h, _ = self._scan("up", h, given, level, train)
            for i in range(1, count + 1):
                h = block(f"{prefix}up_block_{i}", jnp.concatenate([h, kept.pop()], axis=-1))
                h = attend(f"{prefix}up_attn_{i}", h, everywhere)
            return h

        h = through(0, h)
        h = nn.swish(group_norm(self.num_groups, self.dtype, "norm_out")(h))
        zeros = nn.initializers.zeros
        h = conv(z.shape[-1], "conv_out", kernel_init=zeros)(h).astype(z.dtype)
        return z + h if self.residual else h

    def _scan(
        self,
        side: str,
        h: Float[Array, " b *d c"],
        given: Float[Array, " n b *d c"] | None,
        level: Float[Array, " b e"],
        train: bool,
    ) -> tuple[Float[Array, " b *d c"], Float[Array, " n b *d c"]]:
        """Return what all stacked blocks of a side make of h, and what each of them was given.

        Those up also take what their blocks down were `given`.
        """
        padding = each_axis(self.padding, self.axes)
        block = ResBlock(
            self.channels, padding, self.num_groups, self.dropout, self.dtype, parent=None
        )
        attention = AttentionBlock(self.num_groups, self.dtype, parent=None)
        kinds = stacked.KINDS if self.attention == "everywhere" else ("block",)
        params: dict[str, Any] = {
            kind: self.get_variable("params", stacked.name(side, kind)) for kind in kinds
        }
        # The keys of the single blocks, for dropout that is the same in both layouts.
        scope, keys = self.scope, None
        if train and self.dropout and scope is not None:
            names = stacked.names(side, "block", self.num_blocks)
            each = [scope.push(name).push("Dropout_0").make_rng("dropout") for name in names]
            keys = jnp.stack(each)

        def compute(of_block: Any, h: Array, skipped: Array | None) -> Array:
            params, key = of_block
            inputs = h if skipped is None else jnp.concatenate([h, skipped], axis=-1)
            out: Any = block.apply({"params": params["block"]}, inputs, level, train, key)
            if "attn" in params:
                out = attention.apply({"params": params["attn"]}, out)
            return out

        policy = None if self.remat else _is_product
        compute = jax.checkpoint(compute, prevent_cse=False, policy=policy)

        def one(h: Array, xs: Any) -> tuple[Array, Array]:
            of_block, skipped = xs
            # The memory layout of what all blocks keep is not to follow one convolution's: on a
            # TPU it would be copied whole, and once more with its smallest axes padded.
            h, skipped = jax.lax.optimization_barrier((h, skipped))
            return compute(of_block, h, skipped), h

        # The first block up that is stacked takes what the last one down was given.
        return jax.lax.scan(one, h, ((params, keys), given), reverse=side == "up")


def _is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    """Return whether the backward pass keeps what a primitive has computed in a scan.

    Without a policy it would keep every intermediate of every block. What lies between two
    products is as fast to compute again as it is to read.
    """
    return primitive.name in ("conv_general_dilated", "dot_general")
