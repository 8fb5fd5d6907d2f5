"""A run of the data set `mixture` whose network is the exact denoiser."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import runs
from vdm import VDM, adaptive, laws, likelihoods, schedules
from vdm.run import config as configs, mesh, trained
from vdm.run.data.condition import Condition

MESH = mesh.make(configs.DevicesConfig())


class ExactMixture(nn.Module):
    """E[ε|z] for the data set `mixture`, from its definition."""

    num_classes: int | None = None

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        means = jnp.array([[-1.0, -0.5], [1.0, 0.2], [1.5, 1.8]])
        widths, weights = jnp.array([0.5, 0.25, 0.15]), jnp.array([0.6, 0.3, 0.1])
        a2 = jax.nn.sigmoid(log_snr)[:, None]
        s2 = jax.nn.sigmoid(-log_snr)[:, None]
        variance = a2 * widths[None] ** 2 + s2
        gap = z[:, None] - jnp.sqrt(a2)[..., None] * means[None]
        log_w = jnp.log(weights)[None] - jnp.sum(gap**2, -1) / (2 * variance) - jnp.log(variance)
        w = jax.nn.softmax(log_w, -1)
        return jnp.sqrt(s2) * jnp.sum((w / variance)[..., None] * gap, 1)


def with_law(name):
    """The exact denoiser with what a training under the law would have left behind."""
    model = VDM(schedules.linear(12.0, -12.0), ExactMixture(), likelihoods.gaussian(np.exp(-6.0)))
    objective = dataclasses.replace(runs.points().objective, law={"name": name})
    config = dataclasses.replace(runs.points(), objective=objective)
    law, law_state = laws.LAWS[name](), ()
    if name == "adaptive":
        first, more = np.random.default_rng(0).gamma(1.0, 1.0, (2, 100))
        law_state = adaptive.Histogram(
            *map(jnp.asarray, (1e9 * np.ones(100), np.ones(100), first, first**2 + more))
        )
    params = {"schedule": {"ends": {}, "shape": {}}, "network": {}}
    return trained.Trained(config, model, MESH, params, 0, (2,), Condition(), "raw", law, law_state)
