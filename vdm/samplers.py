"""Samplers: from noise to data along a grid of noise levels, with any denoiser.

A sampler is a frozen value with one function, `step`, that carries z from one noise
level to the next cleaner one.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from vdm import draws
from vdm.choices import choose
from vdm.diffusion import convert, posterior
from vdm.losses import EpsFn


@runtime_checkable
class Sampler(Protocol):
    """What every sampler offers."""

    def step(
        self,
        eps_fn: EpsFn,
        z_t: Float[Array, " b *d"],
        noise: Float[Array, " b *d"],
        log_snr_t: Float[Array, ""],
        log_snr_s: Float[Array, ""],
    ) -> Float[Array, " b *d"]:
        """Return z_s from z_t, given standard normal noise."""
        ...


@dataclasses.dataclass(frozen=True)
class Ancestral:
    """Draw from p(z_s|z_t); see `ancestral`."""

    def step(
        self,
        eps_fn: EpsFn,
        z_t: Float[Array, " b *d"],
        noise: Float[Array, " b *d"],
        log_snr_t: Float[Array, ""],
        log_snr_s: Float[Array, ""],
    ) -> Float[Array, " b *d"]:
        x_hat = convert(eps_fn(z_t, log_snr_t), z_t, log_snr_t, source="eps", target="x")
        mean, std = posterior(z_t, x_hat, log_snr_t, log_snr_s)
        return mean + std * noise


def ancestral() -> Ancestral:
    """Return the sampler whose transitions are those of the bound, q(z_s | z_t, x = x̂).

    Its law is exactly the generative model p that the T-step bound is a bound of
    (VDM, appendix A). No transition adds less noise than the model says, the last
    one included.
    """
    return Ancestral()


SAMPLERS = {"ancestral": ancestral}


def sample(
    key: Key[Array, "..."],
    eps_fn: EpsFn,
    log_snrs: Float[Array, " n"],
    shape: tuple[int, ...],
    *,
    sampler: str | Sampler = "ancestral",
) -> Float[Array, " b *d"]:
    """Return z_0 of the given shape, batch axis first, at noise level log_snrs[-1].

    `log_snrs` is an increasing grid of λ from noise to data; z starts as standard normal
    noise at its first entry and each interval costs one step. `key` is one key or one
    key per example. Raises ValueError for an unknown sampler, a grid of fewer than two
    entries or (where its values are known before compilation) one that does not increase.
    """
    if isinstance(sampler, str):
        sampler = choose("sampler", sampler, SAMPLERS)()
    draws.check_key(key, shape[0])
    if log_snrs.shape[0] < 2:
        raise ValueError(f"sampling needs at least one step: got a grid of {log_snrs.shape[0]}")
    if not isinstance(log_snrs, jax.core.Tracer) and not np.all(np.diff(log_snrs) > 0):
        raise ValueError("log_snrs must increase strictly, from noise to data")

    def step(n, z):
        noise = draws.normal(draws.fold_in(key, n + 1), shape, log_snrs.dtype)
        return sampler.step(eps_fn, z, noise, log_snrs[n], log_snrs[n + 1])

    z_1 = draws.normal(draws.fold_in(key, 0), shape, log_snrs.dtype)
    return jax.lax.fori_loop(0, log_snrs.shape[0] - 1, step, z_1)
