"""Heun's method against EDM's algorithm in EDM's own variables, and what it refuses."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import arrays, correlated_eps, scales
from vdm import samplers

MEAN = np.asarray([0.7, -0.3, 1.1])
COVARIANCE = np.asarray([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.8]])
EPS = correlated_eps(MEAN, COVARIANCE)
GRID = np.asarray([-4.0, -2.5, -1.0, 0.5, 1.0, 3.0])


def best_x(x, sigma):
    """EDM's D(x; σ) = E[data | data + σ n = x] for data N(m, C)."""
    gain = COVARIANCE @ np.linalg.inv(COVARIANCE + sigma**2 * np.eye(3))
    return MEAN + (x - MEAN) @ gain.T


def algorithm_2(x, noises, sigmas, churn, s_noise, s_tmin, s_tmax):
    """Karras et al. 2022, algorithm 2 with S_churn/N = churn, corrected at every step."""
    for (t, t_next), eps in zip(itertools.pairwise(sigmas), noises, strict=True):
        gamma = min(churn, math.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0.0
        t_hat = t + gamma * t
        x_hat = x + math.sqrt(t_hat**2 - t**2) * s_noise * eps
        d = (x_hat - best_x(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        d_next = (x - best_x(x, t_next)) / t_next
        x = x_hat + (t_next - t_hat) * (d / 2 + d_next / 2)
    return x


@pytest.mark.parametrize(
    "settings",
    [(0.0, 1.0, 0.0, math.inf), (0.3, 1.0, 0.0, math.inf), (0.3, 1.007, 0.7, 2.0)],
    ids=str,
)
def test_heun_is_edm_s_algorithm(settings):
    z, noises = arrays(1, (5, 3)), arrays(2, (len(GRID) - 1, 5, 3))
    sampler = samplers.heun(*settings)
    step = jax.jit(lambda z, noise, t, s: sampler.step(EPS, z, (), noise, t, s)[0])
    now = jnp.asarray(z)
    for (t, s), noise in zip(itertools.pairwise(GRID), noises, strict=True):
        now = step(now, jnp.asarray(noise), jnp.asarray(t), jnp.asarray(s))
    sigmas = np.exp(-0.5 * GRID)
    assert 1 <= sum(0.7 <= sigma <= 2.0 for sigma in sigmas[:-1]) < len(sigmas) - 1
    expected = algorithm_2(z / scales(GRID[0])[0], noises, sigmas, *settings)
    np.testing.assert_allclose(np.asarray(now) / scales(GRID[-1])[0], expected, rtol=1e-9)


def test_the_most_churn_is_allowed():
    assert samplers.heun(math.sqrt(2.0) - 1.0) == samplers.heun(math.sqrt(2.0) - 1.0)


@pytest.mark.parametrize("churn", [-0.1, 0.42, 40.0, float("nan")])
def test_churn_outside_its_range(churn):
    with pytest.raises(ValueError, match=r"churn is γ of one step .*\[0, √2 − 1\]: got"):
        samplers.heun(churn)


@pytest.mark.parametrize("noise_std", [0.0, -1.0, float("inf"), float("nan")])
def test_noise_std_that_is_not_positive(noise_std):
    with pytest.raises(ValueError, match="noise_std must be positive and finite: got"):
        samplers.heun(0.1, noise_std)


@pytest.mark.parametrize("bounds", [(-1.0, 2.0), (2.0, 1.0), (float("nan"), 1.0)])
def test_churn_bounds_out_of_order(bounds):
    with pytest.raises(ValueError, match=r"churn_min and churn_max .* in order: got"):
        samplers.heun(0.1, 1.0, *bounds)
