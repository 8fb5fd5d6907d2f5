"""DPM-Solver++(2M) against its paper's algorithm, and a case that it solves exactly."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from oracles import arrays, correlated_eps, scales
from vdm import samplers

MEAN = np.asarray([0.7, -0.3, 1.1])
COVARIANCE = np.asarray([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.8]])
EPS = correlated_eps(MEAN, COVARIANCE)
GRID = np.asarray([-4.0, -2.5, -2.0, 0.5, 1.0, 3.0])


def algorithm_2(z, grid):
    """Lu et al. 2022, algorithm 2, with their λ = log(α/σ) and a buffer of predictions."""
    alphas, sigmas = scales(grid)
    lambdas = np.log(alphas / sigmas)
    buffer = []
    for i in range(1, len(grid)):
        eps = np.asarray(EPS(jnp.asarray(z), jnp.asarray(grid[i - 1])))
        buffer.append((z - sigmas[i - 1] * eps) / alphas[i - 1])
        h = lambdas[i] - lambdas[i - 1]
        if i == 1:
            d = buffer[0]
        else:
            r = (lambdas[i - 1] - lambdas[i - 2]) / h
            d = (1 + 1 / (2 * r)) * buffer[-1] - 1 / (2 * r) * buffer[-2]
        z = sigmas[i] / sigmas[i - 1] * z - alphas[i] * (np.exp(-h) - 1) * d
    return z


def test_the_chain_is_what_its_paper_writes():
    z = arrays(1, (5, 3))
    draw = jax.jit(
        lambda start: samplers.sample(
            jax.random.key(0),
            EPS,
            jnp.asarray(GRID),
            start.shape,
            sampler="dpmpp_2m",
            start=start,
        )
    )
    np.testing.assert_allclose(draw(jnp.asarray(z)), algorithm_2(z, GRID), rtol=1e-9)


def test_the_first_step_is_ddim():
    z = jnp.asarray(arrays(2, (5, 3)))
    levels = jnp.asarray(-1.0), jnp.asarray(0.7)

    def first(sampler):
        return sampler.step(EPS, z, sampler.init(z), jnp.zeros_like(z), *levels)[0]

    np.testing.assert_allclose(first(samplers.dpmpp_2m()), first(samplers.ddim()), rtol=1e-9)


def test_what_is_remembered_has_one_form():
    """So that the chain can be a compiled loop: shapes and types stay from the first step on."""
    z, sampler = jnp.asarray(arrays(2, (5, 3))), samplers.dpmpp_2m()
    before = sampler.init(z)
    levels = [jnp.asarray(level) for level in (-1.0, 0.7)]
    _, after = sampler.step(EPS, z, before, jnp.zeros_like(z), *levels)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype


def test_steps_of_any_length_keep_a_constant_prediction_exact():
    """Where x̂ does not change, its extrapolation is x̂ and every grid gives the same z."""
    x = np.asarray([[0.9, -0.4]])
    z = jnp.asarray([[1.5, 0.2]])

    def known(z, log_snr):
        a, s = scales(log_snr)
        return (z - a * x) / s

    results = []
    for grid in ([-4.0, 3.0], [-4.0, -3.9, 1.0, 1.1, 3.0]):
        sampler = samplers.dpmpp_2m()
        now, carry = z, sampler.init(z)
        for t, s in itertools.pairwise(grid):
            now, carry = sampler.step(
                known, now, carry, jnp.zeros_like(z), jnp.asarray(t), jnp.asarray(s)
            )
        results.append(np.asarray(now))
    (a_t, s_t), (a_s, s_s) = scales(-4.0), scales(3.0)
    expected = a_s * x + s_s / s_t * (np.asarray(z) - a_t * x)
    np.testing.assert_allclose(results[0], expected, rtol=1e-10)
    np.testing.assert_allclose(results[1], expected, rtol=1e-10)
