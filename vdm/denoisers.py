"""From denoisers to denoisers: what is changed about ε̂ before a sampler or a loss sees it."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.diffusion import convert, expand
from vdm.losses import EpsFn
from vdm.schedules.base import between


def clip_denoised(eps_fn: EpsFn, low: float, high: float) -> EpsFn:
    """Return the denoiser whose x̂ = (z − σ ε̂)/α is projected onto [low, high].

    The new ε̂ is ε̂ + e^{λ/2} (x̂ − clip(x̂)), which leaves ε̂ untouched wherever x̂ lies inside.
    For encoded data within these bounds ‖ε − ε̂‖² can only fall, being e^λ ‖x − x̂‖², for a
    projection onto a box is never further from a point of the box.
    Raises ValueError unless both bounds are finite and low < high.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"clipping needs finite bounds, low < high: got {low} and {high}")

    def clipped(z: Float[Array, " b *d"], log_snr: Float[Array, "..."]) -> Float[Array, " b *d"]:
        eps_hat = eps_fn(z, log_snr)
        x_hat = convert(eps_hat, z, log_snr, source="eps", target="x")
        beyond = x_hat - jnp.clip(x_hat, low, high)
        return eps_hat + jnp.exp(0.5 * expand(log_snr, z)) * beyond

    return clipped


def guided(conditional: EpsFn, unconditional: EpsFn, scale: float | Float[Array, "*b"]) -> EpsFn:
    """Return classifier-free guidance, ε̂_u + scale (ε̂_c − ε̂_u) (Ho & Salimans 2022, eq. 6).

    Scale 0 is the unconditional denoiser and 1 the conditional one, exactly; beyond 1 the
    condition is exaggerated. Ho & Salimans count from the conditional one: their w is
    scale − 1. `scale` is a number or one per example. Both denoisers are called, so each
    step costs twice. A guided denoiser is no denoiser of a noised density: bounds and
    likelihoods are not defined for it.
    Raises ValueError for a scale of another shape (when called), or one that is a number
    and not finite.
    """
    if isinstance(scale, float | int) and not math.isfinite(scale):
        raise ValueError(f"scale must be finite: got {scale}")

    def eps_fn(z: Float[Array, " b *d"], log_snr: Float[Array, "..."]) -> Float[Array, " b *d"]:
        weight = expand(jnp.asarray(scale, z.dtype), z)
        return between(unconditional(z, log_snr), conditional(z, log_snr), weight)

    return eps_fn
