"""The diffusion process as a stochastic differential equation, forward and in reverse.

With any schedule λ(t), the process q(z|x) at all times solves dz = f(t) z dt + g(t) dW,

    f = ½ λ'(t) σ²,  g² = −λ'(t) σ²,        λ' < 0                (Song et al. 2021, eq. 11)

for α² = sigmoid(λ) has d log α/dt = ½ λ' σ², and σ² = 1 − α² leaves this much noise to add.
In reverse a whole family of equations has the marginals of q: drift f z − ½ (1 + a²) g² score
and diffusion a g, where the noise level a runs from 0, the probability-flow ODE, to 1, the
reverse SDE. The two samplers here integrate it with λ as the clock, in which it reads

    dz = ½ [σ² z − (1 + a²) σ ε̂] dλ + a σ dW,    λ rising.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vdm import draws
from vdm.diffusion import alpha, convert, expand, q_sample, sigma, transition
from vdm.losses import EpsFn
from vdm.schedules import log_snr_and_rate
from vdm.schedules.base import LogSnrFn


def drift(
    z: Float[Array, " b *d"], t: Float[Array, "..."], log_snr_fn: LogSnrFn
) -> Float[Array, " b *d"]:
    """Return f(t) z = ½ λ'(t) σ² z, the drift of the forward SDE; t is a scalar or [b]."""
    log_snr, rate = log_snr_and_rate(log_snr_fn, t)
    return expand(0.5 * rate * jax.nn.sigmoid(-log_snr), z) * z


def diffusion(t: Float[Array, "..."], log_snr_fn: LogSnrFn) -> Float[Array, "..."]:
    """Return g(t) = σ √(−λ'(t)), the noise of the forward SDE per √dt, elementwise."""
    log_snr, rate = log_snr_and_rate(log_snr_fn, t)
    return sigma(log_snr) * jnp.sqrt(-rate)


def reverse_drift(
    z: Float[Array, " b *d"],
    t: Float[Array, "..."],
    log_snr_fn: LogSnrFn,
    eps_fn: EpsFn,
    noise_level: float = 1.0,
) -> Float[Array, " b *d"]:
    """Return f z − ½ (1 + a²) g² score = ½ λ' [σ² z − (1 + a²) σ ε̂] with a = noise_level.

    It is a slope in t, integrated from t = 1 down to 0, with noise of a g per √|dt|; then the
    marginals at every t are those of q whatever a, as long as ε̂ = E[ε|z] (a = 1: Song et al. 2021,
    eq. 6; a = 0: eq. 13). t is a scalar or [b]. Raises ValueError unless 0 ≤ a ≤ 1.
    """
    _check_noise_level(noise_level)
    log_snr, rate = log_snr_and_rate(log_snr_fn, t)
    return expand(rate, z) * _slope(z, eps_fn(z, log_snr), log_snr, noise_level)


def forward_paths(
    key: Key[Array, "..."],
    x: Float[Array, " b *d"],
    times: Float[Array, " n"],
    log_snr_fn: LogSnrFn,
) -> Float[Array, " n b *d"]:
    """Return z at increasing times, one path per example, by the exact transitions.

    q(z_t|z_s) = N(z_s α_t/α_s, σ_t² c I) with c = −expm1(λ_t − λ_s), so z has its law
    q(z_t|x) at each time and its joint law at all of them (VDM, appendix A). `key` is one
    key or one per example. Raises ValueError for no times at all or (where their values
    are known before compilation) times that do not increase.
    """
    log_snrs = log_snr_fn(times)

    def step(
        n: Int[Array, ""], z: Float[Array, " b *d"], noise: Float[Array, " b *d"]
    ) -> Float[Array, " b *d"]:
        mean, std = transition(z, log_snrs[n - 1], log_snrs[n])
        return mean + std * noise

    return _paths(key, x, times, log_snr_fn, step)


def euler_maruyama_paths(
    key: Key[Array, "..."],
    x: Float[Array, " b *d"],
    times: Float[Array, " n"],
    log_snr_fn: LogSnrFn,
) -> Float[Array, " n b *d"]:
    """Return z at increasing times as `forward_paths` does, by steps of Euler and Maruyama.

    z_t = z_s + f(s) z_s (t − s) + g(s) √(t − s) ε, from an exact draw at the first time. The
    laws are off by an error of first order in the steps: a check of the SDE, of no other use
    for a process whose transitions are known.
    """

    def step(
        n: Int[Array, ""], z: Float[Array, " b *d"], noise: Float[Array, " b *d"]
    ) -> Float[Array, " b *d"]:
        s, dt = times[n - 1], times[n] - times[n - 1]
        return z + drift(z, s, log_snr_fn) * dt + diffusion(s, log_snr_fn) * jnp.sqrt(dt) * noise

    return _paths(key, x, times, log_snr_fn, step)


@dataclasses.dataclass(frozen=True)
class EulerMaruyama:
    """First-order steps in λ; see `euler_maruyama`."""

    noise_level: float = 1.0

    def __post_init__(self) -> None:
        _check_noise_level(self.noise_level)

    def init(self, z: Float[Array, " b *d"]) -> tuple[()]:
        del z
        return ()

    def step(
        self,
        eps_fn: EpsFn,
        z_t: Float[Array, " b *d"],
        carry: tuple[()],
        noise: Float[Array, " b *d"],
        log_snr_t: Float[Array, "..."],
        log_snr_s: Float[Array, "..."],
    ) -> tuple[Float[Array, " b *d"], tuple[()]]:
        slope = _slope(z_t, eps_fn(z_t, log_snr_t), log_snr_t, self.noise_level)
        length = log_snr_s - log_snr_t
        std = self.noise_level * sigma(log_snr_t) * jnp.sqrt(length)
        return z_t + slope * expand(length, z_t) + expand(std, z_t) * noise, carry


@dataclasses.dataclass(frozen=True)
class Exponential:
    """Steps exact but for x̂; see `exponential`."""

    noise_level: float = 1.0

    def __post_init__(self) -> None:
        _check_noise_level(self.noise_level)

    def init(self, z: Float[Array, " b *d"]) -> tuple[()]:
        del z
        return ()

    def step(
        self,
        eps_fn: EpsFn,
        z_t: Float[Array, " b *d"],
        carry: tuple[()],
        noise: Float[Array, " b *d"],
        log_snr_t: Float[Array, "..."],
        log_snr_s: Float[Array, "..."],
    ) -> tuple[Float[Array, " b *d"], tuple[()]]:
        x_hat = convert(eps_fn(z_t, log_snr_t), z_t, log_snr_t, source="eps", target="x")
        h, a2 = 0.5 * (log_snr_s - log_snr_t), self.noise_level**2
        from_z = sigma(log_snr_s) / sigma(log_snr_t) * jnp.exp(-a2 * h)
        from_x = -alpha(log_snr_s) * jnp.expm1(-(1.0 + a2) * h)
        mean = expand(from_z, z_t) * z_t + expand(from_x, z_t) * x_hat
        if self.noise_level == 0.0:  # where the root below would have no derivative
            return mean, carry
        std = sigma(log_snr_s) * jnp.sqrt(-jnp.expm1(-2.0 * a2 * h))
        return mean + expand(std, z_t) * noise, carry


def euler_maruyama(noise_level: float = 1.0) -> EulerMaruyama:
    """Return the sampler z_s = z_t + ½ [σ_t² z_t − (1 + a²) σ_t ε̂] Δλ + a σ_t √Δλ ε.

    Steps of Euler and Maruyama with λ as the clock, Δλ = λ_s − λ_t, so any grid will do; the
    laws converge at weak order 1 and want Δλ well below 1. `exponential` costs the same and is
    exact in the linear part: this one is what to compare it with.
    Raises ValueError unless 0 ≤ noise_level ≤ 1. Above 1 the family keeps q's marginals, but
    a step, which puts in and takes out ever more noise, errs by ever more (1 + a² is its rate):
    the two ends have a meaning, and a number beyond them is more likely a slip.
    """
    return EulerMaruyama(noise_level)


def exponential(noise_level: float = 1.0) -> Exponential:
    """Return the sampler that is exact in z and in the noise, with x̂ kept over the step.

    With h = (λ_s − λ_t)/2 and a = noise_level,
    z_s = (σ_s/σ_t) e^{−a²h} z_t + α_s (1 − e^{−(1+a²)h}) x̂ + σ_s √(1 − e^{−2a²h}) ε,
    of weak order 1. a = 1 is the ancestral step q(z_s | z_t, x = x̂), that of the bound
    (SDE-DPM-Solver++(1) of Lu et al. 2022); a = 0 is DDIM (Song, Meng & Ermon 2021).
    Raises ValueError unless 0 ≤ noise_level ≤ 1, for the reason given in `euler_maruyama`.
    """
    return Exponential(noise_level)


def _slope(
    z: Float[Array, " b *d"],
    eps_hat: Float[Array, " b *d"],
    log_snr: Float[Array, "..."],
    noise_level: float,
) -> Float[Array, " b *d"]:
    """Return dz/dλ of the reverse family without its noise, ½ [σ² z − (1 + a²) σ ε̂]."""
    s = expand(sigma(log_snr), z)
    return 0.5 * s * (s * z - (1.0 + noise_level**2) * eps_hat)


def _paths(
    key: Key[Array, "..."],
    x: Float[Array, " b *d"],
    times: Float[Array, " n"],
    log_snr_fn: LogSnrFn,
    step: Callable[[Array, Array, Array], Array],
) -> Float[Array, " n b *d"]:
    """Draw z at the first time, then follow step(n, z_{n−1}, noise) through the others."""
    draws.check_key(key, x.shape[0])
    if times.shape[0] < 1:
        raise ValueError("a path needs at least one time: got none")
    if not isinstance(times, jax.core.Tracer) and not np.all(np.diff(times) > 0):
        raise ValueError("times must increase strictly, from data to noise")

    def advance(
        z: Float[Array, " b *d"], n: Int[Array, ""]
    ) -> tuple[Float[Array, " b *d"], Float[Array, " b *d"]]:
        z = step(n, z, draws.normal(draws.fold_in(key, n), x.shape, x.dtype))
        return z, z

    noise = draws.normal(draws.fold_in(key, 0), x.shape, x.dtype)
    z = q_sample(x, noise, log_snr_fn(times[0]))
    _, rest = jax.lax.scan(advance, z, jnp.arange(1, times.shape[0]))
    return jnp.concatenate([z[None], rest])


def _check_noise_level(noise_level: float) -> None:
    if not 0.0 <= noise_level <= 1.0:
        raise ValueError(
            f"noise_level must lie between 0 (the ODE) and 1 (the reverse SDE): got {noise_level}"
        )
