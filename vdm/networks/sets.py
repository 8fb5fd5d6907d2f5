"""A transformer of sets: attention among points that have no places and no order."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.condition import Condition
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
from vdm.sets import check_mask, wiped

# Of distances of encoded points, whose deviation is about 1 in each coordinate: the farthest that
# has a bump, for three coordinates; the number of bumps; what takes the edge off a distance of 0.
FARTHEST, NUM_BUMPS, SOFT = 4.0, 33, 0.01


class SetTransformer(nn.Module):
    """A transformer over the points of a set, the DiT of Peebles & Xie (2023) without places.

    Takes z of shape [b, n_max, c] with `cond.mask`, booleans [b, n_max] that say which points there
    are (`vdm.condition.Conditions(mask=...)`), and returns an array of z's shape and dtype, 0 in
    the padding. Every point is one token, by a linear map of z, of sin, cos(2π 2ⁿ z) for the n in
    `fourier_exponents`, and of the point's own condition. `num_blocks` blocks of attention with
    `num_heads` heads among the points, and of a perceptron, follow; each is modulated by the noise
    level, the condition and the number of points (adaLN-zero). A linear map, which starts at zero,
    leads back. A fresh network returns z where `residual` (ε̂ = z; made for the eps prediction) and
    0 otherwise, the better start for x, v, score and edm. What is in the padding has no influence,
    and points in another order have their outputs in that order.

    With `distances` attention is also told how far any two points are apart: to the logits of every
    head a function of (|z_i − z_j|² + 0.01²)^½ and of the noise level is added, which starts at
    zero. Its memory grows with b n_max² (34 + channels/4).

    Fields: `channels` of a token, a multiple of `num_heads` and at least 4; `num_blocks`;
    `num_heads`; `fourier_exponents`, empty for none; `distances`; `dropout` (only with train=True);
    the conditions, any of `num_classes` for integers [b], `cond_dim` for vectors [b, cond_dim] and
    `cond_channels` for what is known of each point, [b, n_max, cond_channels]; `optional_cond` for
    examples that come without these (see `vdm.condition`); `residual`; the range `log_snr_max`,
    `log_snr_min` on which λ is normalised; the compute `dtype`, parameters being float32 always;
    and `remat`, which computes every block twice to spare its memory. Raises ValueError or
    TypeError for fields or inputs that do not fit.
    """

    channels: int = 128
    num_blocks: int = 4
    num_heads: int = 4
    fourier_exponents: Sequence[int | float] = ()
    distances: bool = False
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

    def __post_init__(self) -> None:
        # A list, as JSON gives it, would make the module unhashable.
        object.__setattr__(self, "fourier_exponents", tuple(self.fourier_exponents))
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        check_positive(channels=self.channels, num_blocks=self.num_blocks, num_heads=self.num_heads)
        if self.channels % self.num_heads or self.channels < 4:
            raise ValueError(
                "channels must be a multiple of num_heads and at least 4: got "
                f"channels={self.channels}, num_heads={self.num_heads}"
            )
        check_kinds(self._kinds)
        check_common(
            dropout=self.dropout,
            log_snr_max=self.log_snr_max,
            log_snr_min=self.log_snr_min,
        )
        super().__post_init__()

    @property
    def _kinds(self) -> Kinds:
        kinds = (self.num_classes, self.cond_dim, self.cond_channels, self.optional_cond)
        return Kinds(*kinds, masked=True)

    @property
    def masked(self) -> bool:
        """Whether the network is given a mask, that of sets: it is."""
        return True

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

        Raises ValueError unless z has shape [b, n_max, c] and λ shape [b], and ValueError or
        TypeError for a condition that the network was not built for.
        """
        if z.ndim != 3:
            raise ValueError(
                f"SetTransformer expects sets of points, z of shape [b, n_max, c]: got {z.shape}"
            )
        check_log_snr(log_snr, z)
        conditions = checked(cond, z.shape, self._kinds)
        assert conditions.mask is not None
        mask = jnp.asarray(conditions.mask)
        check_mask(mask, z.shape)
        z = wiped(z, mask)
        if conditions.field is not None:
            conditions = conditions._replace(field=wiped(jnp.asarray(conditions.field), mask))
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
        # Attention takes means, which do not tell how many points there are.
        number = jnp.log(jnp.sum(mask, axis=1, keepdims=True).astype(level.dtype))
        level = level + nn.Dense(self.channels, dtype=self.dtype, name="number")(number)
        seen = inputs(z, conditions.field, self.fourier_exponents, self._kinds)
        h = nn.Dense(self.channels, dtype=self.dtype, name="dense_in")(seen)
        pairs = _pairs(z, level, self.channels, self.dtype) if self.distances else None
        # `train`, the third argument counted from the module itself, chooses the computation.
        kind = nn.remat(TransformerBlock, static_argnums=(3,)) if self.remat else TransformerBlock
        for i in range(self.num_blocks):
            block = kind(self.num_heads, (), (), self.dropout, self.dtype, name=f"block_{i}")
            h = block(h, level, train, mask, pairs)
        scale, shift = modulation(level, 2, self.channels, self.dtype)
        h = nn.Dense(
            z.shape[-1],
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="dense_out",
        )(modulated(h, scale, shift, self.dtype))
        h = h.astype(z.dtype)
        return wiped(z + h if self.residual else h, mask)


def _pairs(
    z: Float[Array, " b n c"], level: Float[Array, " b e"], channels: int, dtype: DTypeLike
) -> Float[Array, " b n n features"]:
    """Return what the attention is told of every two points: functions of their distance and λ.

    Makes parameters in the calling module.
    """
    square = jnp.sum(jnp.square(z[:, :, None] - z[:, None]), axis=-1)
    # A root of 0, of a point and itself, would have no derivative.
    distance = jnp.sqrt(square + SOFT**2)
    # Bumps all along it, each as wide as it is far from the next.
    farthest = FARTHEST * math.sqrt(z.shape[-1] / 3)
    places = jnp.linspace(0.0, farthest, NUM_BUMPS, dtype=z.dtype)[None, None, None]
    width = farthest / (NUM_BUMPS - 1)
    bumps = jnp.exp(-0.5 * jnp.square((distance[..., None] - places) / width))
    seen = jnp.concatenate([bumps, jnp.log(distance)[..., None]], axis=-1).astype(dtype)
    features = max(16, channels // 4)
    h = nn.Dense(features, dtype=dtype, name="pairs_in")(seen)
    return nn.swish(h + nn.Dense(features, dtype=dtype, name="pairs_level")(level)[:, None, None])
