"""The diffusion transformer: attention over patches, in every block the noise level."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.condition import Condition
from vdm.networks import positions, wiener
from vdm.networks.axes import check_axes, check_rank, each_axis
from vdm.networks.condition import Kinds, check_kinds, checked
from vdm.networks.embeddings import embed, inputs
from vdm.networks.fields import (
    DTypeLike,
    check_common,
    check_log_snr,
    check_positive,
    dtype_name,
)
from vdm.networks.transformer import TransformerBlock, modulated, modulation


class DiT(nn.Module):
    """A transformer over patches of a series, an image or a volume (Peebles & Xie 2023).

    Takes z of shape [b, *sizes, c] with one to three `axes`, each size a multiple of the `patch`,
    and returns an array of z's shape and dtype. Every patch of z is one token, by a linear map.
    sin, cos(2π 2ⁿ z) for the n in `fourier_exponents` are appended to z before that, pixel by
    pixel: bits are in the finest differences (VDM, appendix C). `num_blocks` blocks of attention
    with `num_heads` heads and of a perceptron follow, each modulated by the noise level and the
    condition (adaLN-zero), and a linear map back to the patches, which starts at zero. A fresh
    network returns z where `residual` (ε̂ = z; made for the eps prediction) and 0 otherwise, the
    better start for x, v, score and edm. The defaults are DiT-S/2 of the paper.

    `padding` says what is beyond the ends of an axis: "zero" for nothing, where tokens are given
    their places as sines and cosines, or "wrap" for the other end, where attention is given the
    differences of places alone, by rotary positions of that period. Where all axes wrap, shifting
    z cyclically by whole patches shifts the output.

    Fields: `axes`; `patch` and `padding`, one for all axes or one for each; `channels` of a token,
    a multiple of `num_heads`; `num_blocks`; `num_heads`; `fourier_exponents`, empty for none;
    `dropout` (only with train=True); the conditions, any of `num_classes` for integers [b],
    `cond_dim` for vectors [b, cond_dim] and `cond_channels` for fields [b, *sizes, cond_channels],
    which are appended to z; `optional_cond` for examples that come without (see `vdm.condition`);
    `residual`; the range `log_snr_max`, `log_snr_min` on which λ is normalised; the compute
    `dtype`, parameters being float32 always; `remat`, which computes every block twice to
    spare its memory; and `wiener`, "stationary" or "full" for a network that is also given the best
    linear estimate of x (see `vdm.networks.wiener`). Raises ValueError or TypeError for fields or
    inputs that do not fit.
    """

    axes: int = 2
    patch: int | Sequence[int] = 2
    channels: int = 384
    num_blocks: int = 12
    num_heads: int = 6
    fourier_exponents: Sequence[int | float] = (6, 7)
    padding: str | Sequence[str] = "zero"
    dropout: float = 0.0
    num_classes: int | None = None
    cond_dim: int | None = None
    cond_channels: int | None = None
    optional_cond: bool = False
    residual: bool = True
    log_snr_max: float = 13.3
    log_snr_min: float = -5.0
    dtype: DTypeLike = "float32"
    remat: bool = False
    wiener: str = "none"

    def __post_init__(self) -> None:
        # A list, as JSON gives it, would make the module unhashable.
        for name in ("patch", "padding"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        object.__setattr__(self, "fourier_exponents", tuple(self.fourier_exponents))
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        check_axes(self.axes)
        check_positive(channels=self.channels, num_blocks=self.num_blocks, num_heads=self.num_heads)
        if not isinstance(self.patch, int | tuple):
            raise ValueError(f"patch must be a whole number or several: got {self.patch!r}")
        self._check_heads()
        for size in self._patches:
            check_positive(patch=size)
        if len(self._patches) != self.axes:
            raise ValueError(
                f"patch must be one size or one for each of {self.axes} axes: got {self.patch}"
            )
        check_kinds(self._kinds)
        check_common(
            dropout=self.dropout,
            log_snr_max=self.log_snr_max,
            log_snr_min=self.log_snr_min,
        )
        wiener.check_kind(self.wiener)
        super().__post_init__()

    def _check_heads(self) -> None:
        """Raise ValueError unless a head's channels are whole, and enough for its positions."""
        if self.channels % self.num_heads:
            raise ValueError(
                "channels must be a multiple of num_heads: got "
                f"channels={self.channels}, num_heads={self.num_heads}"
            )
        head, closed = self.channels // self.num_heads, self.wiener_padding.count("wrap")
        if closed and (head % 2 or head < 2 * closed):
            raise ValueError(
                f"with padding 'wrap' on {closed} of the axes each head needs an even number of "
                f"channels, at least {2 * closed}: got channels={self.channels}, "
                f"num_heads={self.num_heads}"
            )
        ends = self.axes - closed
        if self.channels < max(4, 2 * ends):
            raise ValueError(f"channels must be at least {max(4, 2 * ends)}: got {self.channels}")

    @property
    def _kinds(self) -> Kinds:
        return Kinds(self.num_classes, self.cond_dim, self.cond_channels, self.optional_cond)

    @property
    def _patches(self) -> tuple[int, ...]:
        return (self.patch,) * self.axes if isinstance(self.patch, int) else tuple(self.patch)

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

        Raises ValueError unless z has shape [b, *sizes, c] with sizes that are multiples of the
        patch, and λ shape [b], and ValueError or TypeError for a condition that the network was
        not built for.
        """
        _check_shape(z.shape, self._patches)
        check_log_snr(log_snr, z)
        padding = self.wiener_padding
        conditions = checked(cond, z.shape, self._kinds)
        level = embed(
            log_snr,
            conditions,
            self._kinds,
            features=self.channels,
            hidden=self.channels,
            log_snr_max=self.log_snr_max,
            log_snr_min=self.log_snr_min,
            dtype=self.dtype,
        )
        seen = inputs(
            z,
            conditions.field,
            self.fourier_exponents,
            self._kinds,
            wiener.estimated(self.wiener, padding, z, log_snr),
        )

        sizes = tuple(size // p for size, p in zip(z.shape[1:-1], self._patches, strict=True))
        h = nn.Dense(self.channels, dtype=self.dtype, name="dense_in")(
            to_patches(seen, self._patches)
        )
        h = h + jnp.asarray(positions.absolute(sizes, padding, self.channels), h.dtype)[None]
        # `train`, the third argument counted from the module itself, chooses the computation.
        kind = nn.remat(TransformerBlock, static_argnums=(3,)) if self.remat else TransformerBlock
        for i in range(self.num_blocks):
            block = kind(
                self.num_heads,
                sizes,
                padding,
                self.dropout,
                self.dtype,
                name=f"block_{i}",
            )
            h = block(h, level, train)
        scale, shift = modulation(level, 2, self.channels, self.dtype)
        h = nn.Dense(
            math.prod(self._patches) * z.shape[-1],
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="dense_out",
        )(modulated(h, scale, shift, self.dtype))
        h = from_patches(h, self._patches, z.shape).astype(z.dtype)
        return z + h if self.residual else h


def to_patches(z: Float[Array, " b *d"], patches: Sequence[int]) -> Float[Array, " b n features"]:
    """Return the patches [b, n, features] of z [b, *sizes, c], both in row-major order."""
    axes, (b, *sizes, c) = len(patches), z.shape
    cut = [part for size, p in zip(sizes, patches, strict=True) for part in (size // p, p)]
    order = (0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    return z.reshape(b, *cut, c).transpose(order).reshape(b, -1, math.prod(patches) * c)


def from_patches(
    h: Float[Array, " b n features"], patches: Sequence[int], shape: Sequence[int]
) -> Float[Array, " b *d"]:
    """Return the array of a shape whose patches are given, the inverse of `to_patches`."""
    axes, (b, *sizes, c) = len(patches), shape
    counts = [size // p for size, p in zip(sizes, patches, strict=True)]
    order = (0, *(i for axis in range(1, axes + 1) for i in (axis, axis + axes)), 2 * axes + 1)
    return h.reshape(b, *counts, *patches, c).transpose(order).reshape(shape)


def _check_shape(shape: tuple[int, ...], patches: tuple[int, ...]) -> None:
    check_rank("DiT", len(patches), shape)
    for axis, (size, p) in enumerate(zip(shape[1:-1], patches, strict=True)):
        if size % p or not size:
            below = [size // p * p] if size > p else []
            fitting = " or ".join(map(str, [*below, (size // p + 1) * p]))
            raise ValueError(
                f"DiT with patch={p} expects sizes that are multiples of {p}: got size {size} on "
                f"axis {axis + 1} of z's shape {shape}; {fitting} would fit"
            )
