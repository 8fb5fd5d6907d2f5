"""A variational diffusion model: schedule, network and likelihood as plain functions."""

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from vdm import draws, losses, noise_levels as levels, samplers
from vdm.choices import unknown
from vdm.diffusion import PREDICTIONS, alpha, convert, expand
from vdm.likelihoods import Likelihood
from vdm.losses import EpsFn
from vdm.noise_levels import NoiseLevels
from vdm.samplers import Sampler
from vdm.schedules import Schedule
from vdm.schedules.base import LogSnrFn

Params = dict[str, Any]
HEADS = (*PREDICTIONS, "edm")
Data = Num[Array | np.ndarray, " b *d"]


class VLB(NamedTuple):
    """The three terms of −VLB(x) in nats per example, each of shape [b]; lower is better."""

    prior: Float[Array, " b"]
    reconstruction: Float[Array, " b"]
    diffusion: Float[Array, " b"]

    @property
    def total(self) -> Float[Array, "*b"]:
        """The negative variational bound, an upper bound of −log p(x) in expectation."""
        return self.prior + self.reconstruction + self.diffusion


@dataclasses.dataclass(frozen=True)
class VDM:
    """A variational diffusion model (Kingma, Salimans, Poole & Ho 2021).

    `network` is a Flax Linen module f(z, log_snr, cond, *, train) whose output has z's
    shape; `prediction` says what that output means: "eps", "x", "v", "score" or "edm".
    "edm" is the preconditioned network F of Karras et al. (2022, eq. 7): it is given
    c_in z/α and x̂ = c_skip z/α + c_out F, where `sigma_data` is the data's standard deviation.
    Two models made of equal parts are equal and hash alike, so a function jitted with
    the model as a static argument is compiled once for both.
    Raises ValueError for an unknown prediction or a sigma_data that is not positive.
    """

    schedule: Schedule
    network: nn.Module
    likelihood: Likelihood
    prediction: str = "eps"
    sigma_data: float = 0.5

    def __post_init__(self):
        if self.prediction not in HEADS:
            raise ValueError(unknown("prediction", self.prediction, HEADS))
        if not (math.isfinite(self.sigma_data) and self.sigma_data > 0):
            raise ValueError(f"sigma_data must be positive and finite: got {self.sigma_data}")

    def init(self, key: Key[Array, ""], x: Data, cond: Array | np.ndarray | None = None) -> Params:
        """Return fresh parameters {"schedule": {"ends", "shape"}, "network"} for data like x."""
        key_schedule, key_network = jax.random.split(key)
        z = self.likelihood.encode(jnp.asarray(x))
        cond = None if cond is None else jnp.asarray(cond)
        log_snr = jnp.zeros(z.shape[:1], z.dtype)
        variables = self.network.init(key_network, z, log_snr, cond, train=False)
        return {
            "schedule": self.schedule.init(key_schedule),
            "network": variables.get("params", {}),
        }

    def log_snr(self, params: Params) -> LogSnrFn:
        """Return the schedule's λ(t) at these parameters."""
        return lambda t: self.schedule.log_snr(params["schedule"], t)

    def denoiser(
        self,
        params: Params,
        cond: Array | np.ndarray | None = None,
        *,
        dropout_key: Array | None = None,
    ) -> EpsFn:
        """Return eps_fn(z, log_snr) → ε̂ at these parameters, whatever the network predicts.

        The noise level may be a scalar. Without a dropout key the function is
        deterministic. ε̂ has the precision of z, not of the network.
        """
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        cond = None if cond is None else jnp.asarray(cond)

        def apply(z, log_snr):
            output: Any = self.network.apply(
                {"params": params["network"]},
                z,
                log_snr,
                cond,
                train=dropout_key is not None,
                rngs=rngs,
            )
            return output.astype(z.dtype)

        def eps_fn(z, log_snr):
            per_example = jnp.broadcast_to(log_snr, z.shape[:1])
            if self.prediction == "edm":
                x_hat = _precondition(apply, z, per_example, self.sigma_data)
                return convert(x_hat, z, per_example, source="x", target="eps")
            output = apply(z, per_example)
            return convert(output, z, per_example, source=self.prediction, target="eps")

        return eps_fn

    def vlb(
        self,
        params: Params,
        key: Key[Array, "..."],
        x: Data,
        cond: Array | np.ndarray | None = None,
        *,
        noise_levels: Float[Array, " b"] | NoiseLevels | None = None,
        num_steps: int | Int[Array, ""] | None = None,
        dropout_key: Array | None = None,
    ) -> VLB:
        """Return a one-sample estimate of the negative bound for every example, in nats.

        `num_steps` is T; None is T = ∞, and all finite T share one compilation.
        `noise_levels` says where the diffusion term is taken: times in [0, 1] on the
        schedule, or levels with their density from any law of `vdm.noise_levels`. By
        default it is one low-discrepancy set of times over the batch (VDM, appendix I.1),
        or with one key per example one uniform time from each key.
        For finite T a time t stands for the step ⌊tT⌋ + 1. Each term is an unbiased
        estimate for uniform times, −VLB being their sum (VDM, eq. 11).
        Raises TypeError for data that the likelihood does not model, ValueError for
        keys or times that do not fit the batch or num_steps < 1.
        """
        x = jnp.asarray(x)
        draws.check_key(key, x.shape[0])
        key_t, key_0, key_eps = draws.split(key, 3)
        if noise_levels is None:
            noise_levels = self._default_times(key_t, x.shape[0])
        given = noise_levels.log_snr if isinstance(noise_levels, NoiseLevels) else noise_levels
        if given.shape != x.shape[:1]:
            raise ValueError(
                f"noise_levels must be one per example, shape {x.shape[:1]}: got shape "
                f"{given.shape}"
            )
        encoded = self.likelihood.encode(x)
        log_snr_fn, eps_fn = (
            self.log_snr(params),
            self.denoiser(params, cond, dropout_key=dropout_key),
        )
        log_snr_0, log_snr_1 = (log_snr_fn(jnp.asarray(t, encoded.dtype)) for t in (0.0, 1.0))
        eps_0 = draws.normal(key_0, x.shape, encoded.dtype)
        eps = draws.normal(key_eps, x.shape, encoded.dtype)
        if isinstance(noise_levels, NoiseLevels):
            if num_steps is not None:
                raise ValueError("a bound with num_steps takes times, not levels with a density")
            diffusion = losses.diffusion_loss_at(encoded, noise_levels, eps, eps_fn)
        elif num_steps is None:
            diffusion = losses.diffusion_loss(encoded, noise_levels, eps, log_snr_fn, eps_fn)
        else:
            step = jnp.clip(jnp.floor(noise_levels * num_steps).astype(int) + 1, 1, num_steps)
            diffusion = losses.diffusion_loss_steps(
                encoded, step, eps, log_snr_fn, eps_fn, num_steps=num_steps
            )
        return VLB(
            prior=losses.prior_kl(encoded, log_snr_1),
            reconstruction=losses.reconstruction(x, eps_0, log_snr_0, self.likelihood),
            diffusion=diffusion,
        )

    def _default_times(self, key, n):
        if key.ndim == 0:
            return levels.low_discrepancy(key, n)
        return jax.vmap(lambda k: levels.uniform(k, 1)[0])(key)

    def sample(
        self,
        params: Params,
        key: Key[Array, "..."],
        shape: tuple[int, ...],
        *,
        num_steps: int,
        sampler: str | Sampler = "ancestral",
        cond: Array | np.ndarray | None = None,
    ) -> Num[Array, " b *d"]:
        """Return data drawn from the model, of the given shape, batch axis first.

        The noise levels are the schedule's at num_steps + 1 even times; z_0 goes through
        the likelihood's `decode`. Raises ValueError for num_steps < 1, an unknown sampler
        or keys that do not fit the batch.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1: got {num_steps}")
        log_snrs = self.log_snr(params)(jnp.linspace(1.0, 0.0, num_steps + 1))
        eps_fn = self.denoiser(params, cond)
        z_0 = samplers.sample(key, eps_fn, log_snrs, shape, sampler=sampler)
        return self.likelihood.decode(z_0, log_snrs[-1])


def _precondition(
    apply: EpsFn, z: Float[Array, " b *d"], log_snr: Float[Array, " b"], sigma_data: float
) -> Float[Array, " b *d"]:
    """Return EDM's x̂ from its network F, with ς = σ/α = e^{−λ/2} (Karras et al. 2022, table 1)."""
    level = expand(log_snr, z)
    noise, noised = jnp.exp(-0.5 * level), z / alpha(level)  # ς and x + ς ε
    total = jnp.sqrt(jnp.square(noise) + sigma_data**2)
    c_in, c_out, c_skip = 1.0 / total, noise * sigma_data / total, jnp.square(sigma_data / total)
    return c_skip * noised + c_out * apply(c_in * noised, log_snr)
