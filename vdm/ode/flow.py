"""Exact likelihood by the probability-flow ODE, for any denoiser.

    dz/dλ = ½ σ (σ z − ε̂(z, λ))
    d log p(z)/dλ = −½ σ (σ D − tr ∂ε̂/∂z)

The ODE has the marginals of the diffusion process (Song et al. 2021, section 4.3). With
the prior N(0, I) at λ_min it defines a density of z_0 at λ_max, which is evaluated by
carrying z_0 back to the prior (Chen et al. 2018, theorem 1).

Every example has its own step sizes, so its result does not depend on the batch it is in:
`eps_fn` is called on batches of one example under `jax.vmap`, which gives the network the
whole batch in one piece. What `eps_fn` closes over is therefore common to all examples;
a condition per example goes in by `jax.vmap` over these functions, as in
`VDM.log_likelihood`. A batch takes as many steps as its slowest example.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from vdm import draws
from vdm.diffusion import sigma
from vdm.losses import EpsFn
from vdm.ode.divergence import draw_probes, value_and_traces
from vdm.ode.integrator import Integrate, State, integrator
from vdm.ode.options import Divergence, Steps, of_keywords
from vdm.schedules.base import between, check_ends

End = Float[Array, ""] | float
# time → λ there, σ, and dλ/dtime · ½ σ
Path = Callable[[Float[Array, ""]], tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]]


class Solution(NamedTuple):
    """What a solve gives, per example.

    `log_prob` is log p(z_0) in nats and `latent` is z_1 at λ_min; both are NaN where the solve
    did not come to its end. `nfe` is the number of evaluations of ε̂ and its divergence.
    `standard_error` is that of log_prob over the probes, in nats: 0 for the exact divergence,
    NaN for one probe.
    """

    log_prob: Float[Array, " b"]
    latent: Float[Array, " b *d"]
    nfe: Int[Array, " b"]
    standard_error: Float[Array, " b"]


def log_prob(
    key: Key[Array, "..."],
    eps_fn: EpsFn,
    z_0: Float[Array, " b *d"],
    *,
    log_snr_max: End,
    log_snr_min: End,
    divergence: Divergence = "exact",
    steps: Steps = None,
    num_probes: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    num_steps: int | None = None,
) -> Float[Array, " b"]:
    """Return log p(z_0) at λ_max in nats per example; options and errors as in `solve`."""
    divergence, steps = of_keywords(divergence, steps, num_probes, rtol, atol, num_steps)
    return solve(
        key,
        eps_fn,
        z_0,
        log_snr_max=log_snr_max,
        log_snr_min=log_snr_min,
        divergence=divergence,
        steps=steps,
    ).log_prob


def solve(
    key: Key[Array, "..."],
    eps_fn: EpsFn,
    z_0: Float[Array, " b *d"],
    *,
    log_snr_max: End,
    log_snr_min: End,
    divergence: Divergence = "exact",
    steps: Steps = None,
    num_probes: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    num_steps: int | None = None,
) -> Solution:
    """Return log p(z_0) at λ_max, its latent z_1, and what the solve cost.

    log p(z_0) = log N(z_1; 0, I) + log |∂z_1/∂z_0|, the last term being
    ∫ ½ σ (σ D − tr ∂ε̂/∂z) dλ from λ_max to λ_min (Song et al. 2021, appendix D.2).

    `divergence` is "exact", D products with the Jacobian an evaluation, or an estimate from
    `num_probes` products, `ode.hutchinson(num_probes)`; "hutchinson" is that with one. Its ±1
    probes are drawn from `key`, one key or one per example, once for the solve; "exact" draws
    nothing. A key that z_0 itself was drawn with must not be used again: probes that depend on
    the noise in z_0 give a biased trace.
    `steps` of the fifth-order method Tsit5 (Tsitouras 2011) adapt to the local error by
    `ode.adaptive(rtol, atol)`, and None is that with 1e-5 each; the result is NaN where
    4096 steps are not enough. A whole number means so many steps, equal in λ.
    `num_probes`, `rtol`, `atol` and `num_steps` are the older spelling of these two options.
    The end points may be traced values. Matrix products and convolutions of float32 are
    done in full float32; a network that computes in bfloat16 still does.
    Raises ValueError for end points out of order, an unknown divergence, the exact one above
    256 dimensions, steps or probes that are not whole numbers of at least 1, tolerances that are
    not positive and finite, and in the older spelling for an option given in both spellings,
    probes of the exact divergence and tolerances of fixed steps.
    """
    divergence, steps = of_keywords(divergence, steps, num_probes, rtol, atol, num_steps)
    draws.check_key(key, z_0.shape[0])
    _check_order(log_snr_max, log_snr_min)
    integrate = integrator(steps)
    probes = draw_probes(key, z_0.shape, divergence, z_0.dtype)
    num_dims = math.prod(z_0.shape[1:])
    path = _path(log_snr_max, log_snr_min, z_0.dtype)

    def one(z_0: Float[Array, "*d"], probes: Float[Array, " p *d"] | None) -> Solution:
        def field(time: Float[Array, ""], state: State, _: None) -> State:
            z = state[0]
            log_snr, noise, rate = path(time)
            eps_hat, traces = value_and_traces(lambda z: eps_fn(z[None], log_snr)[0], z, probes)
            return rate * (noise * z - eps_hat), rate * (noise * num_dims - traces)

        # Zero, but this example's own: under vmap, diffrax's loop (0.7.2) returns wrong gradients
        # for a part of the state that is common to all, as for a linear denoiser it would be.
        changes = jnp.full(1 if probes is None else len(probes), 0.0 * jnp.sum(z_0))
        (z_1, changes), nfe = integrate(field, (z_0, changes))
        prior = -0.5 * (jnp.sum(jnp.square(z_1)) + num_dims * math.log(2.0 * math.pi))
        return Solution(prior + jnp.mean(changes), z_1, nfe, _standard_error(changes, probes))

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(z_0, probes)


def encode(
    eps_fn: EpsFn,
    z_0: Float[Array, " b *d"],
    *,
    log_snr_max: End,
    log_snr_min: End,
    steps: Steps = None,
    rtol: float | None = None,
    atol: float | None = None,
    num_steps: int | None = None,
) -> Float[Array, " b *d"]:
    """Return z_1 at λ_min, to which the ODE carries z_0; steps and errors as in `solve`."""
    _, steps = of_keywords(steps=steps, rtol=rtol, atol=atol, num_steps=num_steps)
    _check_order(log_snr_max, log_snr_min)
    path = _path(log_snr_max, log_snr_min, z_0.dtype)
    return _carry(eps_fn, z_0, path, integrator(steps))


def decode(
    eps_fn: EpsFn,
    z_1: Float[Array, " b *d"],
    *,
    log_snr_max: End,
    log_snr_min: End,
    steps: Steps = None,
    rtol: float | None = None,
    atol: float | None = None,
    num_steps: int | None = None,
) -> Float[Array, " b *d"]:
    """Return the z_0 at λ_max that the ODE carries to z_1; steps and errors as in `solve`."""
    _, steps = of_keywords(steps=steps, rtol=rtol, atol=atol, num_steps=num_steps)
    _check_order(log_snr_max, log_snr_min)
    path = _path(log_snr_min, log_snr_max, z_1.dtype)
    return _carry(eps_fn, z_1, path, integrator(steps))


def _carry(
    eps_fn: EpsFn, z: Float[Array, " b *d"], path: Path, integrate: Integrate
) -> Float[Array, " b *d"]:
    def field(time: Float[Array, ""], state: State, _: None) -> State:
        log_snr, noise, rate = path(time)
        (z,) = state
        return (rate * (noise * z - eps_fn(z[None], log_snr)[0]),)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda z: integrate(field, (z,))[0][0])(z)


def _check_order(log_snr_max: End, log_snr_min: End) -> None:
    if not any(isinstance(end, jax.core.Tracer) for end in (log_snr_max, log_snr_min)):
        check_ends(float(log_snr_max), float(log_snr_min))


def _path(start: End, end: End, dtype: DTypeLike) -> Path:
    """Return time in [0, 1] → λ from start to end, σ, and dλ/dtime · ½ σ."""
    start, end = jnp.asarray(start, dtype), jnp.asarray(end, dtype)

    def path(
        time: Float[Array, ""],
    ) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        log_snr = between(start, end, time)
        noise = sigma(log_snr)
        return log_snr, noise, 0.5 * (end - start) * noise

    return path


def _standard_error(
    changes: Float[Array, " n"], probes: Float[Array, " p *d"] | None
) -> Float[Array, ""]:
    if probes is None:
        return jnp.zeros((), changes.dtype)
    return jnp.std(changes, ddof=1) / math.sqrt(len(changes))  # NaN for one
