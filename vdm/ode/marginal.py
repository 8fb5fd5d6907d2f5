"""log p(x) of data itself: dequantised, carried through the ODE, once or several times."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from vdm import draws, ode
from vdm.dequantisation import Continuous, dequantiser
from vdm.likelihoods import Likelihood
from vdm.losses import EpsFn
from vdm.ode.options import Divergence, Steps


class Draws(NamedTuple):
    """Draws of z_0 for every example, each entry [k, b].

    `log_weights` are log p(z_0) + log_weight in nats. `nfe` and `standard_error` are those of
    `ode.Solution`.
    """

    log_weights: Float[Array, " k b"]
    nfe: Int[Array, " k b"]
    standard_error: Float[Array, " k b"]


def log_weights(
    key: Key[Array, "..."],
    x: Num[Array, " b *d"],
    eps_fn: EpsFn,
    likelihood: Likelihood,
    *,
    log_snr_max: Float[Array, ""],
    log_snr_min: Float[Array, ""],
    dequantisation: str | None = None,
    num_samples: int = 1,
    divergence: Divergence = "exact",
    steps: Steps = None,
) -> Draws:
    """Return K = num_samples draws of the likelihood of x, one after the other, in nats.

    The logarithm of their mean (`dequantisation.importance_weighted`) is a lower bound of
    log P(x) for integers. Real data has one draw, and it is log p(x) itself. The draws are
    those of `vdm.dequantisation`: "truncated_normal" is the default for integers, and None
    is all there is for real data. `divergence` and `steps` are those of `ode.solve`. The draws
    of one example share their Hutchinson probes: with probes of their own the logarithm of
    the mean would turn noise of the divergence into likelihood, and no bound would be left.
    Raises ValueError for num_samples < 1, more than one sample of real data, and what
    `ode.solve` and `dequantisation.dequantiser` refuse.
    """
    draws.check_key(key, x.shape[0])
    dequantise = dequantiser(likelihood, dequantisation)
    if not (isinstance(num_samples, int) and num_samples >= 1):
        raise ValueError(f"num_samples must be a whole number of at least 1: got {num_samples!r}")
    if num_samples > 1 and isinstance(dequantise, Continuous):
        raise ValueError(
            f"real data needs no draws, expected num_samples=1: got num_samples={num_samples}"
        )
    key_probes, key_draws = draws.split(key, 2)

    def draw(key: Key[Array, "*b"]) -> Draws:
        z_0, log_weight = dequantise.draw(key, x, log_snr_max)
        solution = ode.solve(
            key_probes,
            eps_fn,
            z_0,
            log_snr_max=log_snr_max,
            log_snr_min=log_snr_min,
            divergence=divergence,
            steps=steps,
        )
        return Draws(solution.log_prob + log_weight, solution.nfe, solution.standard_error)

    return jax.lax.map(draw, jnp.stack(draws.split(key_draws, num_samples)))
