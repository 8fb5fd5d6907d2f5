"""A chain of few steps: its noise levels, and how uncertain its steps take x̂ to be.

A reverse step from λ_t to λ_s > λ_t has the mean of q(z_s|z_t, x = x̂). With c = 1 − SNR_t/SNR_s
and κ = e^{λ_s} − e^{λ_t} its variance here is

    c σ_s² (1 + κ v),    v ≥ 0 in every dimension,

where v is what is left of x's variance once z_t is known. v = 0 is the chain of VDM and the β̃ of
DDPM (Ho et al. 2020, section 3.2), which take x̂ for x. The best v is E[(x − x̂)²] given whatever v
may depend on (Bao et al. 2022, Analytic-DPM, theorem 1, for one number a level). Any v makes a
valid bound, so that it may be fitted, on training data.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vdm.diffusion import convert, expand
from vdm.sets import Mask, wiped

# What v may depend on: nothing but the level, the channel or the position, or z_t itself.
VARIANCES = ("none", "level", "channel", "table", "head")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """v as numbers, one row for every step; a row is broadcast to the shape of an example."""

    values: Float[Array | np.ndarray, " steps *d"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["module"])
@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """v as exp of a network's output; `module` is a Linen module f(z, x̂, λ) → log v.

    `vdm.few_steps.VarianceHead` is such a network, and `vdm.few_steps.fit_head` fits it.
    """

    module: nn.Module
    params: Any


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["log_snrs", "variance", "mask"],
    meta_fields=["clip_denoised"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """T + 1 increasing noise levels λ, from noise to data, and the v of the T steps between them.

    `variance` is a `Table`, a `Head`, or None for v = 0. `clip_denoised` says that x̂ is clipped to
    the data's range, as it was when v was fitted. It is a pytree: a compiled function takes it as
    an argument. `vdm.few_steps.chain` makes one, and `vdm.few_steps.check` says if it is sound. A
    `mask` is that of the sets (`vdm.sets`) that a bound is of: v is 0 in their padding.
    """

    log_snrs: Float[Array | np.ndarray, " levels"]
    variance: Table | Head | None = None
    clip_denoised: bool = False
    mask: Mask | None = None

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.log_snrs) - 1

    def v(
        self,
        z: Float[Array, " b *d"],
        eps_hat: Float[Array, " b *d"],
        log_snr: Float[Array, "..."],
    ) -> Float[Array, " b *d"] | None:
        """Return v at z, of level λ, where the denoiser answers ε̂; None where v = 0.

        λ is the noisier level of a step, for all examples or one for each: between the chain's own
        levels a table has no values, and that of the nearest one is taken. Raises ValueError for a
        table that has not one row for every step.
        """
        if self.variance is None:
            return None
        return wiped(self._v(z, eps_hat, log_snr), self.mask)

    def masked(self, mask: Mask | None) -> "Chain":
        """Return the chain for the sets of a mask; without one as it is."""
        return self if mask is None else dataclasses.replace(self, mask=mask)

    def _v(
        self,
        z: Float[Array, " b *d"],
        eps_hat: Float[Array, " b *d"],
        log_snr: Float[Array, "..."],
    ) -> Float[Array, " b *d"]:
        log_snr = jnp.broadcast_to(log_snr, z.shape[:1]).astype(z.dtype)
        if isinstance(self.variance, Head):
            x_hat = convert(eps_hat, z, log_snr, source="eps", target="x")
            module, params = self.variance.module, self.variance.params
            log_v: Any = module.apply({"params": params}, z, x_hat, log_snr)
            return jnp.exp(log_v.astype(z.dtype))
        assert self.variance is not None
        if len(self.variance.values) != self.num_steps:
            raise ValueError(
                f"a chain of {self.num_steps} steps needs a table of as many rows: got "
                f"{len(self.variance.values)}"
            )
        levels = jnp.asarray(self.log_snrs[:-1], z.dtype)
        row = jnp.argmin(jnp.abs(log_snr[:, None] - levels[None]), axis=1)
        values = jnp.asarray(self.variance.values, z.dtype)
        missing = z.ndim - values.ndim  # the axes that a row has fewer than an example
        values = values.reshape(len(values), *(1,) * missing, *values.shape[1:])
        return jnp.broadcast_to(values[row], z.shape)

    def ends(self, step: Int[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Return λ_t and λ_s of steps counted from data to noise, 1 to T, as in the bound."""
        levels = jnp.asarray(self.log_snrs)
        return levels[self.num_steps - step], levels[self.num_steps - step + 1]


def spread(
    v: Float[Array, " b *d"] | None,
    log_snr_t: Float[Array, "..."],
    log_snr_s: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Return 1 + κ v, by which v widens the variance c σ_s² of a step; v of shape [b, *d].

    κ = e^{λ_s} − e^{λ_t}. Without a v it is the number 1.
    """
    if v is None:
        return jnp.ones((), jnp.result_type(log_snr_t))
    return 1.0 + expand(kappa(log_snr_t, log_snr_s), v) * v


def kappa(log_snr_t: Float[Array, "..."], log_snr_s: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return κ = e^{λ_s} − e^{λ_t}, what a step from λ_t to λ_s tells of x."""
    return jnp.exp(log_snr_t) * jnp.expm1(log_snr_s - log_snr_t)


def check(chain: Chain, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the levels increase and a table fits steps and examples of a shape.

    For values that are known: it looks at them, and so cannot be compiled.
    """
    levels = np.asarray(chain.log_snrs)
    if levels.ndim != 1 or len(levels) < 2:
        raise ValueError(f"a chain needs at least two noise levels: got shape {levels.shape}")
    if not np.all(np.isfinite(levels)) or np.any(np.diff(levels) <= 0):
        raise ValueError(f"a chain's log_snrs must be finite and increase strictly: got {levels}")
    if not isinstance(chain.variance, Table):
        return
    values = np.asarray(chain.variance.values)
    try:
        fits = np.broadcast_shapes(values.shape[1:], shape) == tuple(shape)
    except ValueError:
        fits = False
    if len(values) != chain.num_steps or not fits:
        raise ValueError(
            f"a table for {chain.num_steps} steps of examples {list(shape)} was expected: got "
            f"{list(values.shape)}"
        )
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError("a table's variances must be finite and not negative")
