"""The decoder p(x|z_0): how the least noisy latent gives back data.

A likelihood is a frozen value with `encode(x)`, which maps data to the real numbers
the process diffuses, `log_prob(x, z_0, log_snr)` in nats per example,
`decode(z_0, log_snr)`, which returns the most probable data, and
`draw(key, z_0, log_snr)`, which returns data drawn from p(x|z_0).
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key, Num

from vdm import draws, level_sum
from vdm.diffusion import LARGEST_LOG_SNR, alpha, expand


@runtime_checkable
class Likelihood(Protocol):
    """What every likelihood offers.

    `levels` is the number of levels of integers 0..levels−1, None for real numbers; `bounds`
    are the least and the greatest encoded value, None where there are none.
    """

    @property
    def levels(self) -> int | None:
        """The number of levels of integer data."""
        ...

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The range of encoded data."""
        ...

    def encode(self, x: Num[Array, " b *d"]) -> Float[Array, " b *d"]:
        """Map data to real numbers of about unit scale."""
        ...

    def log_prob(
        self, x: Num[Array, " b *d"], z_0: Float[Array, " b *d"], log_snr: Float[Array, "..."]
    ) -> Float[Array, " b"]:
        """Return log p(x|z_0) in nats per example; x is not encoded."""
        ...

    def decode(
        self, z_0: Float[Array, " b *d"], log_snr: Float[Array, "..."]
    ) -> Num[Array, " b *d"]:
        """Return the most probable data."""
        ...

    def draw(
        self, key: Key[Array, "..."], z_0: Float[Array, " b *d"], log_snr: Float[Array, "..."]
    ) -> Num[Array, " b *d"]:
        """Return data drawn from p(x|z_0), with one key or one key per example."""
        ...


@dataclasses.dataclass(frozen=True)
class Discretised:
    """Integer data with a number of levels; see `discretised`."""

    levels: int = 256

    def __post_init__(self) -> None:
        if not (isinstance(self.levels, int) and self.levels >= 2):
            raise ValueError(f"levels must be a whole number of at least 2: got {self.levels!r}")

    @property
    def bounds(self) -> tuple[float, float]:
        return 1.0 / self.levels - 1.0, 1.0 - 1.0 / self.levels

    def encode(self, x: Integer[Array, " b *d"]) -> Float[Array, " b *d"]:
        self._check(x)
        return self._value(x)

    def log_prob(
        self, x: Integer[Array, " b *d"], z_0: Float[Array, " b *d"], log_snr: Float[Array, "..."]
    ) -> Float[Array, " b"]:
        self._check(x)
        # Half precision cannot distinguish neighbouring levels.
        z_0 = z_0.astype(jnp.promote_types(z_0.dtype, jnp.float32))
        x_hat = z_0 / alpha(expand(log_snr, z_0))
        nearest = jax.lax.stop_gradient(self._nearest(x_hat))
        # From two near numbers: through (x_hat + 1)·levels/2 the last digits would be lost.
        delta = 0.5 * self.levels * (x_hat - self._value(nearest))
        # The square of the levels' spacing in units of the noise of z_0/α_0, which is σ_0/α_0.
        # It is as good as infinite long before exp(λ) is.
        snr = jnp.exp(jnp.minimum(expand(log_snr, x_hat), LARGEST_LOG_SNR)).astype(delta.dtype)
        rho2 = (2.0 / self.levels) ** 2 * snr
        level = x.astype(delta.dtype)
        j = level - nearest
        chosen = -0.5 * rho2 * j * (j - 2.0 * delta)
        log_probs = chosen - level_sum.log_sum(delta, nearest, rho2, self.levels)
        # What is no level has no probability; where x is traced, `_check` could not look.
        log_probs = jnp.where((level >= 0) & (level < self.levels), log_probs, -jnp.inf)
        return jnp.sum(log_probs, axis=tuple(range(1, z_0.ndim)))

    def decode(
        self, z_0: Float[Array, " b *d"], log_snr: Float[Array, "..."]
    ) -> Int[Array, " b *d"]:
        x_hat = z_0 / alpha(expand(log_snr, z_0))
        return self._integer(self._nearest(x_hat), x_hat)

    def draw(
        self, key: Key[Array, "..."], z_0: Float[Array, " b *d"], log_snr: Float[Array, "..."]
    ) -> Int[Array, " b *d"]:
        x_hat = z_0 / alpha(expand(log_snr, z_0))
        logits = self._every(x_hat, jnp.exp(0.5 * log_snr))
        return self._integer(draws.categorical(key, logits), x_hat)

    def _integer(
        self, level: Num[Array, " b *d"], x_hat: Float[Array, " b *d"]
    ) -> Int[Array, " b *d"]:
        # No integer is NaN: what is no number must not become a level.
        return jnp.where(jnp.isnan(x_hat), -1, level.astype(jnp.int32))

    def _every(
        self, x_hat: Float[Array, " b *d"], precision: Float[Array, "..."]
    ) -> Float[Array, " b *d levels"]:
        """Return log q(z_0|x) of every level x up to a constant, levels last."""
        gap = x_hat[..., None] - self._value(jnp.arange(self.levels)).reshape(
            (1,) * x_hat.ndim + (-1,)
        )
        return -0.5 * jnp.square(expand(precision, gap) * gap)

    def _check(self, x: Array) -> None:
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(
                f"a discretised likelihood models integers 0..{self.levels - 1}: got {x.dtype} "
                "data (use gaussian(scale) for real-valued data)"
            )
        # A dtype that holds nothing else needs no check.
        least, most = jnp.iinfo(x.dtype).min, jnp.iinfo(x.dtype).max
        if isinstance(x, jax.core.Tracer) or (least >= 0 and most < self.levels) or not x.size:
            return
        values = np.asarray(x)  # NumPy's: a minimum of JAX would be traced where others are
        for value in (int(values.min()), int(values.max())):
            if not 0 <= value < self.levels:
                raise ValueError(
                    f"a discretised likelihood models the levels 0..{self.levels - 1}: got {value}"
                )

    def _nearest(self, x_hat: Float[Array, " b *d"]) -> Float[Array, " b *d"]:
        level = jnp.round(0.5 * ((x_hat + 1.0) * self.levels - 1.0))
        return jnp.clip(level, 0, self.levels - 1)

    def _value(self, level: Num[Array, "*n"]) -> Float[Array, "*n"]:
        return (2.0 * level.astype(float) + 1.0) / self.levels - 1.0


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Real-valued data; see `gaussian`."""

    scale: float
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale must be positive and finite: got {self.scale}")
        if not np.all(np.isfinite(self.mean)):
            raise ValueError(f"mean must be finite: got {self.mean}")
        if not (np.all(np.isfinite(self.std)) and np.all(np.asarray(self.std) > 0)):
            raise ValueError(f"std must be positive and finite: got {self.std}")

    @property
    def levels(self) -> None:
        return None

    @property
    def bounds(self) -> None:
        return None

    def encode(self, x: Float[Array | np.ndarray, " b *d"]) -> Float[Array, " b *d"]:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"a Gaussian likelihood models real numbers: got {x.dtype} data "
                "(use discretised(levels) for integers)"
            )
        if isinstance(x, np.ndarray):  # in float64, before it becomes float32 on a device
            exact = x.astype(np.float64)
            near = (exact - np.asarray(self.mean)) / np.asarray(self.std)
            return jnp.asarray(near.astype(jnp.promote_types(x.dtype, jnp.float32)))
        # Half precision would round the process itself: z, ε and the loss.
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return (x - self._last_axis(self.mean, x)) / self._last_axis(self.std, x)

    def log_prob(
        self, x: Float[Array, " b *d"], z_0: Float[Array, " b *d"], log_snr: Float[Array, "..."]
    ) -> Float[Array, " b"]:
        encoded = self.encode(x)
        residual = (encoded - z_0 / alpha(expand(log_snr, z_0))) / self.scale
        # The density of x itself: standardising contributes its log-Jacobian −log std.
        log_scale = math.log(self.scale) + jnp.log(self._last_axis(self.std, encoded))
        log_probs = -0.5 * jnp.square(residual) - log_scale - 0.5 * math.log(2.0 * math.pi)
        return jnp.sum(log_probs, axis=tuple(range(1, x.ndim)))

    def decode(
        self, z_0: Float[Array, " b *d"], log_snr: Float[Array, "..."]
    ) -> Float[Array, " b *d"]:
        x_hat = z_0 / alpha(expand(log_snr, z_0))
        return x_hat * self._last_axis(self.std, z_0) + self._last_axis(self.mean, z_0)

    def draw(
        self, key: Key[Array, "..."], z_0: Float[Array, " b *d"], log_snr: Float[Array, "..."]
    ) -> Float[Array, " b *d"]:
        noise = draws.normal(key, z_0.shape, z_0.dtype)
        spread = self.scale * self._last_axis(self.std, z_0)
        return self.decode(z_0, log_snr) + spread * noise

    def _last_axis(
        self, value: float | tuple[float, ...], like: Float[Array, " b *d"]
    ) -> Float[Array, "..."]:
        entries = jnp.asarray(value, like.dtype)
        return entries if entries.ndim == 0 else entries.reshape((1,) * (like.ndim - 1) + (-1,))


def discretised(levels: int = 256) -> Discretised:
    """Return the likelihood of integer data x in 0..levels−1.

    encode(x) = (2x + 1)/levels − 1, the midpoint of x's bin in [−1, 1], and per
    dimension p(x|z_0) ∝ q(z_0|x) ∝ exp(−½ e^{λ_0} (z_0/α_0 − encode(x))²), normalised
    over the levels (VDM, section 3.3). `decode` takes the most probable level, `draw` one
    by its probability; both are integers in 0..levels−1, or −1 where z_0 is not a number. The
    log-probability of an integer outside them is −∞ under jit, where values cannot be looked at.
    Raises ValueError if levels is not a whole number of at least 2; outside jit `encode` and
    `log_prob` raise ValueError for an integer outside the levels, and always TypeError for data
    that is not of an integer type.
    """
    return Discretised(levels)


def gaussian(
    scale: float,
    mean: float | tuple[float, ...] = 0.0,
    std: float | tuple[float, ...] = 1.0,
) -> Gaussian:
    """Return the likelihood of real data, N(encode(x); z_0/α_0, scale²) per dimension.

    encode(x) = (x − mean)/std, where mean and std are numbers or one number per entry of
    the last axis; log_prob is the density of x itself, so it contains −Σ log std. The
    noise that z_0 carries is e^{−λ_max/2} in the same units: a scale of that size wastes
    the least. NumPy data are encoded in float64 and then rounded. Raises ValueError for a scale or
    std that is not positive and finite; `encode` raises TypeError for data that is not of a
    floating type.
    """
    return Gaussian(scale, mean, std)
