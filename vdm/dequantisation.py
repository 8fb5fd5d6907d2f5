"""From data to the ODE's z_0: what turns a density of z_0 into a probability of x.

A dequantisation is a frozen value with one function, `draw(key, x, log_snr_max)`, which
returns z_0 and a log-weight in nats such that

    log P(x) ≥ E[log p(z_0) + log_weight].

For integers P(x) is the probability under the model that z_0/α_0 falls in x's bin, of
width 2/V around encode(x) for V levels, and log_weight = −log q(z_0|x) for a q on that bin.
The bins do not overlap, so Σ_x P(x) ≤ 1. Real data needs no draws: the weight is the
log-Jacobian, and log p(x) is exact.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key, Num

from vdm import draws
from vdm.choices import choose
from vdm.diffusion import alpha, expand, sigma
from vdm.likelihoods import Discretised, Gaussian, Likelihood

Drawn = tuple[Float[Array, " b *d"], Float[Array, " b"]]


@runtime_checkable
class Dequantisation(Protocol):
    """What every dequantisation offers."""

    def draw(
        self, key: Key[Array, "..."], x: Num[Array, " b *d"], log_snr_max: Float[Array, "..."]
    ) -> Drawn:
        """Return z_0 and its log-weight in nats; key is one key or one per example."""
        ...


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Evenly over the bin; see `uniform`."""

    likelihood: Discretised

    def draw(
        self, key: Key[Array, "..."], x: Integer[Array, " b *d"], log_snr_max: Float[Array, "..."]
    ) -> Drawn:
        y, levels = self.likelihood.encode(x), self.likelihood.levels
        draws.check_key(key, x.shape[0])
        log_snr = expand(log_snr_max, y)
        y += (2.0 * draws.uniform(key, y.shape, y.dtype) - 1.0) / levels
        # −log q(z_0|x) = log(2 α_0/V) in every dimension.
        log_weight = 0.5 * jax.nn.log_sigmoid(log_snr) + math.log(2.0 / levels)
        return alpha(log_snr) * y, _sum_dims(log_weight, y)


@dataclasses.dataclass(frozen=True)
class TruncatedNormal:
    """The process's own noise, cut to the bin; see `truncated_normal`."""

    likelihood: Discretised

    def draw(
        self, key: Key[Array, "..."], x: Integer[Array, " b *d"], log_snr_max: Float[Array, "..."]
    ) -> Drawn:
        y = self.likelihood.encode(x)
        draws.check_key(key, x.shape[0])
        log_snr = expand(log_snr_max, y)
        tau = jnp.exp(0.5 * log_snr) / self.likelihood.levels
        mass = jax.lax.erf(tau / math.sqrt(2.0))  # of N(0, 1) on ±τ
        u = 2.0 * draws.uniform(key, y.shape, y.dtype) - 1.0
        # The inverse CDF; where the mass rounds to 1 it is infinite at u = −1.
        noise = jnp.clip(math.sqrt(2.0) * jax.lax.erf_inv(u * mass), -tau, tau)
        # −log q(z_0|x), q being N(α_0 encode(x), σ_0²) on the bin divided by its mass there.
        log_scale = 0.5 * (jax.nn.log_sigmoid(-log_snr) + math.log(2.0 * math.pi))
        log_weight = 0.5 * jnp.square(noise) + log_scale + jnp.log(mass)
        return alpha(log_snr) * y + sigma(log_snr) * noise, _sum_dims(log_weight, y)


@dataclasses.dataclass(frozen=True)
class Continuous:
    """Real data as it is; see `continuous`."""

    likelihood: Gaussian

    def draw(
        self, key: Key[Array, "..."], x: Float[Array, " b *d"], log_snr_max: Float[Array, "..."]
    ) -> Drawn:
        # encode acts on each entry by itself, so its Jacobian is the vector of slopes.
        y, slope = jax.jvp(self.likelihood.encode, (x,), (jnp.ones_like(x),))
        log_snr = expand(log_snr_max, y)
        return alpha(log_snr) * y, _sum_dims(
            0.5 * jax.nn.log_sigmoid(log_snr) + jnp.log(jnp.abs(slope)), y
        )


def _sum_dims(values: Float[Array, "..."], like: Float[Array, " b *d"]) -> Float[Array, " b"]:
    return jnp.sum(jnp.broadcast_to(values, like.shape), axis=tuple(range(1, like.ndim)))


def uniform(likelihood: Discretised) -> Uniform:
    """Return the dequantisation z_0 = α_0 (encode(x) + (2u − 1)/V), u ~ U[0, 1).

    log_weight = D log(2 α_0/V), the log-volume of x's bin in z_0 (Theis et al. 2016).
    """
    return Uniform(likelihood)


def truncated_normal(likelihood: Discretised) -> TruncatedNormal:
    """Return the dequantisation z_0 = α_0 encode(x) + σ_0 e, e ~ N(0, 1) cut to ±τ.

    τ = e^{λ_max/2}/V puts the cut at the edges of x's bin, and log_weight = −log q(z_0|x)
    has the mean D·H with H = ½(1 + log 2πσ_0²) + log Z − τ e^{−τ²/2}/(√(2π) Z),
    Z = erf(τ/√2) (Zheng et al. 2023). z_0 is where a model trained on noised data
    expects it, which makes the bound tighter than the uniform one.
    """
    return TruncatedNormal(likelihood)


def continuous(likelihood: Gaussian) -> Continuous:
    """Return what real data takes: z_0 = α_0 encode(x), nothing drawn from the key.

    log_weight = D log α_0 + Σ log |d encode(x)/dx|, so log p(z_0) + log_weight is the log-density
    of x itself for the model whose encoded data is z_0/α_0.
    """
    return Continuous(likelihood)


DEQUANTISATIONS: dict[str, Callable[[Discretised], Dequantisation]] = {
    "truncated_normal": truncated_normal,
    "uniform": uniform,
}


def dequantiser(likelihood: Likelihood, name: str | None) -> Dequantisation:
    """Return the dequantisation of that name for this likelihood's data.

    None is "truncated_normal" for integers and all that there is for real data. Raises
    ValueError for an unknown name and for any name with real data, TypeError for a
    likelihood that is neither discretised nor Gaussian.
    """
    if isinstance(likelihood, Discretised):
        name = "truncated_normal" if name is None else name
        return choose("dequantisation", name, DEQUANTISATIONS)(likelihood)
    if not isinstance(likelihood, Gaussian):
        raise TypeError(f"expected a discretised or Gaussian likelihood: got {likelihood!r}")
    if name is not None:
        raise ValueError(
            f"real data needs no dequantisation: got {name!r} for a Gaussian likelihood, "
            "expected None"
        )
    return continuous(likelihood)


def importance_weighted(log_weights: Float[Array, " k b"]) -> Float[Array, " b"]:
    """Return log (1/K) Σ_k exp(log_weights[k]), a lower bound of log P(x) in expectation.

    With log p(z_0) + log_weight of K independent draws it is tighter the larger K
    (Burda et al. 2016); K = 1 is the plain bound.
    """
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(log_weights.shape[0])
