"""A residual multi-layer perceptron: the network for points, tables and other small vectors."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.condition import Condition
from vdm.networks import wiener
from vdm.networks.condition import Kinds, check_kinds, checked
from vdm.networks.embeddings import embed, of_field
from vdm.networks.fields import (
    DTypeLike,
    check_common,
    check_log_snr,
    check_positive,
    dtype_name,
)


class MLP(nn.Module):
    """Residual blocks of two dense layers, each given the noise level and the condition.

    Takes z of any shape [b, ...], which it flattens, and returns an array of z's shape
    and dtype. Each block adds dense2(dropout(swish(dense1(swish(norm(h))) + cond_proj)))
    to h; dense2, cond_proj and dense_out start at zero, so a fresh network returns z
    where `residual` (a fresh ε̂ = z, as in the VDM paper) and 0 otherwise, the better
    start for the x, v, score and edm predictions.

    Fields: `width` of the layers, `num_blocks`, `dropout` (only with train=True), the
    conditions, any of `num_classes` for integers [b], `cond_dim` for vectors [b, cond_dim] and
    `cond_channels` for fields of z's shape with that number of channels, `optional_cond` for
    examples that come without (see `vdm.condition`), `residual`, the range `log_snr_max`,
    `log_snr_min` on which λ is normalised, the compute `dtype`, parameters being float32
    always, `remat`, which computes every block twice to spare its memory, and `wiener`, "full" for
    a network that is also given the best linear estimate of x (see `vdm.networks.wiener`).
    Raises ValueError or TypeError for fields or inputs that do not fit together.
    """

    width: int = 128
    num_blocks: int = 3
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
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        check_positive(width=self.width, num_blocks=self.num_blocks)
        check_kinds(self._kinds)
        check_common(
            dropout=self.dropout,
            log_snr_max=self.log_snr_max,
            log_snr_min=self.log_snr_min,
        )
        wiener.check_kind(self.wiener, ("none", "full"))
        super().__post_init__()

    @property
    def _kinds(self) -> Kinds:
        return Kinds(self.num_classes, self.cond_dim, self.cond_channels, self.optional_cond)

    @property
    def wiener_padding(self) -> tuple[str, ...]:
        """The padding of each axis, by which a stationary filter would go: there is none."""
        return ()

    @nn.compact
    def __call__(
        self,
        z: Float[Array, " b *d"],
        log_snr: Float[Array, " b"],
        cond: Condition | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, " b *d"]:
        """Return the prediction at z and λ; `train` switches dropout on (rng "dropout")."""
        check_log_snr(log_snr, z)
        conditions = checked(cond, z.shape, self._kinds)
        level = embed(
            log_snr,
            conditions,
            self._kinds,
            features=self.width,
            hidden=self.width,
            log_snr_max=self.log_snr_max,
            log_snr_min=self.log_snr_min,
            dtype=self.dtype,
        )
        flat = z.reshape(z.shape[0], -1)
        seen = [flat]
        estimate = wiener.estimated(self.wiener, (), z if z.ndim > 1 else flat, log_snr)
        if estimate is not None:
            seen.append(estimate.reshape(flat.shape))
        if conditions.field is not None:
            field = of_field(conditions.field, self._kinds).reshape(z.shape[0], -1)
            seen.append(field.astype(z.dtype))
        h = nn.Dense(self.width, dtype=self.dtype, name="dense_in")(jnp.concatenate(seen, axis=-1))
        # `train`, the third argument counted from the module itself, chooses the computation.
        kind = nn.remat(MLPBlock, static_argnums=(3,)) if self.remat else MLPBlock
        for i in range(self.num_blocks):
            h = kind(self.width, self.dropout, self.dtype, name=f"block_{i}")(h, level, train)
        h = nn.swish(nn.LayerNorm(dtype=self.dtype, name="norm_out")(h))
        h = nn.Dense(
            flat.shape[1],
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="dense_out",
        )(h)
        h = h.reshape(z.shape).astype(z.dtype)
        return z + h if self.residual else h


class MLPBlock(nn.Module):
    """One residual block of the MLP: h + dense2(swish(dense1(swish(norm h)) + cond))."""

    width: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, h: Float[Array, " b c"], level: Float[Array, " b e"], train: bool
    ) -> Float[Array, " b c"]:
        zeros = nn.initializers.zeros
        r = nn.swish(nn.LayerNorm(dtype=self.dtype, name="norm")(h))
        r = nn.Dense(self.width, dtype=self.dtype, name="dense1")(r)
        r += nn.Dense(
            self.width, use_bias=False, dtype=self.dtype, kernel_init=zeros, name="cond_proj"
        )(level)
        r = nn.Dropout(self.dropout, deterministic=not train)(nn.swish(r))
        return h + nn.Dense(self.width, dtype=self.dtype, kernel_init=zeros, name="dense2")(r)
