"""What the clean end of a schedule costs the decoder, reported before a run trains with it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from vdm.diffusion import alpha, sigma
from vdm.losses import bits_per_dim
from vdm.model import VDM
from vdm.run.data.dataset import Dataset
from vdm.run.training import scale

NUM_QUANTILES = 64
WORTH_SAYING = 0.1  # bits per dimension


def decoder_cost(model: VDM, log_snr_max: float) -> float:
    """Return E[−log₂ p(x|z₀)] of one integer, averaged over the levels, at λ_max.

    It is the reconstruction term of every network: the bits to read x from z₀ = α x + σ ε (VDM,
    section 3.3). The mean over ε is over 64 quantiles of the normal distribution; of more than 256
    levels it takes 256.
    """
    return float(_bits(model, log_snr_max))


def lines(model: VDM, data: Dataset) -> tuple[str, ...]:
    """Return what is worth saying of the two ends of λ before a training, a line each."""
    line = advice(model)
    return scale.advice(model, data) if line is None else (line,)


def advice(model: VDM) -> str | None:
    """Return a warning about λ_max where the decoder costs more than a tenth of a bit, or None.

    Only of integers; see `vdm.run.training.scale` for real numbers.
    """
    levels = model.likelihood.levels
    if levels is None:
        return None
    log_snr_max = float(_first(model))
    cost = decoder_cost(model, log_snr_max)
    if cost < WORTH_SAYING:
        return None
    enough = 2 * math.log(levels) + 2.2
    return (
        f"with {levels} levels and λ_max = {log_snr_max:.3g} the decoder costs {cost:.2f} bits per "
        f"dimension, whatever the network learns; with model.schedule.log_snr_max = {enough:.1f} "
        "it costs almost nothing"
    )


# Compiled whole: one operation after the other takes seconds at the start of every run.
@functools.partial(jax.jit, static_argnames="model")
def _bits(model: VDM, log_snr_max: float | jax.Array) -> jax.Array:
    levels = model.likelihood.levels
    assert levels is not None
    some = np.unique(np.linspace(0, levels - 1, min(levels, 256)).round().astype(np.int32))
    x = jnp.asarray(np.repeat(some, NUM_QUANTILES)[:, None])
    quantiles = ndtri((jnp.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES)
    eps = jnp.tile(quantiles, len(some))[:, None]
    log_snr = jnp.asarray(log_snr_max, eps.dtype)
    z_0 = alpha(log_snr) * model.likelihood.encode(x) + sigma(log_snr) * eps
    nats = -model.likelihood.log_prob(x, z_0, log_snr)
    return bits_per_dim(nats, 1).mean()


@functools.partial(jax.jit, static_argnames="model")
def _first(model: VDM) -> jax.Array:
    params = {"schedule": model.schedule.init(jax.random.key(0))}
    return model.log_snr(params)(jnp.zeros(()))
