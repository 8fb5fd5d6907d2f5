"""A small network that says how uncertain x̂ is, and the loss that fits it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.diffusion import alpha, expand
from vdm.losses import sum_dims
from vdm.networks.embeddings import sinusoidal
from vdm.networks.fields import check_positive

FARTHEST = 4.0  # beyond it x̂ is nowhere near encoded data
MOST = 16.0  # of how far log v is from that of normal data: v stays a number in float32
PERIOD = 64.0  # of λ: what the sinusoids tell apart


class VarianceHead(nn.Module):
    """log v of every dimension from z, x̂ and λ: dense layers, or convolutions over spatial axes.

    The output is added to −softplus(λ) = log 1/(1 + SNR), the variance of standard normal data
    given z, and starts at zero. Data of rank 1, [b, c], have no spatial axes and take dense
    layers; all others are [b, *space, c] and take 3 × … × 3 convolutions. With `levels`, the
    number of values of discretised data, it is also shown where x̂ lies between two of them, for
    near the data that is what decides. Fields: `width` of the `num_layers` hidden layers.
    """

    width: int = 32
    num_layers: int = 3
    levels: int | None = None

    def __post_init__(self) -> None:
        check_positive(width=self.width, num_layers=self.num_layers)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        z: Float[Array, " b *d"],
        x_hat: Float[Array, " b *d"],
        log_snr: Float[Array, " b"],
    ) -> Float[Array, " b *d"]:
        """Return log v, of z's shape and of at least float32."""
        level = expand(log_snr, z)
        # How far x̂ is from z, as the noise that it stands for.
        noise = jnp.exp(0.5 * level) * (z / alpha(level) - x_hat)
        inputs = [z, *(FARTHEST * jnp.tanh(part / FARTHEST) for part in (x_hat, noise))]
        if self.levels is not None:
            turns = jnp.pi * self.levels * x_hat  # one turn from level to level, 2/levels apart
            inputs += [jnp.sin(turns), jnp.cos(turns)]
        h = jnp.concatenate(inputs, axis=-1)
        embedded = nn.swish(nn.Dense(self.width)(sinusoidal(log_snr / PERIOD, self.width)))
        for _ in range(self.num_layers):
            scale, shift = (nn.Dense(self.width)(embedded) for _ in range(2))
            h = _layer(h, self.width, nn.initializers.lecun_normal())
            h = nn.swish(h * (1.0 + _over(scale, h)) + _over(shift, h))
        zeros = nn.initializers.zeros
        out = _layer(h, z.shape[-1], zeros)
        out = out + _over(nn.Dense(z.shape[-1], kernel_init=zeros)(embedded), out)
        return MOST * jnp.tanh(out / MOST) - jax.nn.softplus(level)


def head_loss(
    module: nn.Module,
    params: Any,
    x: Float[Array, " b *d"],
    z: Float[Array, " b *d"],
    x_hat: Float[Array, " b *d"],
    log_snr: Float[Array, " b"],
    log_snr_max: Float[Array, ""] | float,
) -> Float[Array, " b"]:
    """Return ½ Σ [log(1 + κ v) + (1 + κ (x − x̂)²)/(1 + κ v) − 1] with κ = e^{λ_max} − e^λ.

    It is what a single step from λ to λ_max would cost, in nats, [b]; no number of steps plays a
    part in it. Where κ v is large it is ½ [log v + (x − x̂)²/v] but for a constant, the likelihood
    of a normal law, and where κ v is small, v makes no difference to any chain. x is encoded data,
    and `module` a `VarianceHead` or another f(z, x̂, λ) → log v. No gradient goes to z, x̂ and λ, so
    that the loss can be added to that of the denoiser, which it does not change.
    """
    z, x_hat, log_snr = jax.lax.stop_gradient((z, x_hat, log_snr))
    error = jnp.square(x - x_hat)
    gain = expand(jax.lax.stop_gradient(jnp.exp(log_snr_max)) - jnp.exp(log_snr), x)
    log_v: Any = module.apply({"params": params}, z, x_hat, log_snr)
    wide = 1.0 + gain * jnp.exp(log_v)
    return 0.5 * sum_dims(jnp.log(wide) + (1.0 + gain * error) / wide - 1.0)


def _layer(
    h: Float[Array, " b *space c"], width: int, start: nn.initializers.Initializer
) -> Float[Array, " b *space features"]:
    """Mix the channels, and neighbours along the spatial axes if there are any."""
    axes = h.ndim - 2
    if axes == 0:
        return nn.Dense(width, kernel_init=start)(h)
    return nn.Conv(width, (3,) * axes, kernel_init=start)(h)


def _over(values: Float[Array, " b c"], h: Float[Array, " b *space c"]) -> Float[Array, "..."]:
    """Return one value per channel, for every place."""
    return values.reshape(len(values), *(1,) * (h.ndim - 2), -1)
