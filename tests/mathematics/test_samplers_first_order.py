"""Ancestral chains whose law at few steps is known, and DDIM as its paper writes it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import (
    SKEWED,
    ancestral_step,
    arrays,
    backward_transition,
    correlated_eps,
    exact_eps,
    scales,
    within,
)
from vdm import samplers

MEAN = np.asarray([0.7, -0.3, 1.1])
COVARIANCE = np.asarray([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.8]])
EPS = correlated_eps(MEAN, COVARIANCE)
GRID = np.linspace(-5.0, 4.0, 13)


def exact_moments(grid):
    """The mean and covariance of z along the chain, which is linear in z for Gaussian data."""
    mean, cov = np.zeros(3), np.eye(3)
    for t, s in itertools.pairwise(grid):
        matrix, shift, variance = ancestral_step(MEAN, COVARIANCE, float(t), float(s))
        mean = matrix @ mean + shift
        cov = matrix @ cov @ matrix.T + variance * np.eye(3)
    return mean, cov


def test_ancestral_chain_of_gaussian_data_at_few_steps():
    draw = jax.jit(lambda key: samplers.sample(key, EPS, jnp.asarray(GRID), (20001, 3)))
    z = np.asarray(draw(jax.random.key(1)))
    mean, cov = exact_moments(GRID)
    assert within(z, mean)
    centred = z - mean
    assert within(centred[:, :, None] * centred[:, None, :], cov)


def test_many_steps_reach_the_data():
    """A check of the exact recursion: it tends to α m and α² C + σ² I."""
    mean, cov = exact_moments(np.linspace(-12.0, 4.0, 4001))
    a, s = scales(4.0)
    np.testing.assert_allclose(mean, a * MEAN, atol=3e-3)
    np.testing.assert_allclose(cov, a**2 * COVARIANCE + s**2 * np.eye(3), atol=3e-3)


def test_ancestral_chain_of_a_skewed_mixture():
    """Three moments against the density carried step by step over a fine grid of z."""
    eps_fn, z = exact_eps(SKEWED), np.linspace(-6, 6, 801)
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    for t, s in itertools.pairwise(GRID):
        from_z, from_x, variance = backward_transition(float(t), float(s))
        a, noise = scales(float(t))
        eps = np.asarray(eps_fn(jnp.asarray(z)[:, None], jnp.asarray(t)))[:, 0]
        mean = from_z * z + from_x * (z - noise * eps) / a
        kernel = np.exp(-0.5 * (z[:, None] - mean) ** 2 / variance)
        density = kernel @ density * (z[1] - z[0]) / np.sqrt(2 * np.pi * variance)
    np.testing.assert_allclose(density.sum() * (z[1] - z[0]), 1.0, atol=1e-6)
    moments = [density @ z**k * (z[1] - z[0]) for k in (1, 2, 3)]

    draw = jax.jit(lambda key: samplers.sample(key, eps_fn, jnp.asarray(GRID), (40001, 1)))
    samples = np.asarray(draw(jax.random.key(2)))
    assert within(samples ** np.asarray([1, 2, 3]), moments)


def take(sampler, z, noise, log_snr_t, log_snr_s):
    z, noise = jnp.asarray(z), jnp.asarray(noise)
    levels = jnp.asarray(log_snr_t), jnp.asarray(log_snr_s)
    step = jax.jit(lambda z, noise, *levels: sampler.step(EPS, z, (), noise, *levels)[0])
    return np.asarray(step(z, noise, *levels))


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_what_its_paper_writes(eta):
    """Song et al. 2021, eq. 12 and 16, in their α (our α²)."""
    z, noise = arrays(1, (5, 3)), arrays(2, (5, 3))
    for t, s in ((-6.0, -5.5), (-0.5, 2.0), (3.0, 8.0)):
        at, as_ = (scales(level)[0] ** 2 for level in (t, s))
        eps = np.asarray(EPS(jnp.asarray(z), jnp.asarray(t)))
        std = eta * np.sqrt((1 - as_) / (1 - at)) * np.sqrt(1 - at / as_)
        predicted = (z - np.sqrt(1 - at) * eps) / np.sqrt(at)
        expected = np.sqrt(as_) * predicted + np.sqrt(1 - as_ - std**2) * eps + std * noise
        got = take(samplers.ddim(eta), z, noise, t, s)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_ddim_with_all_the_noise_is_ancestral():
    z, noise = arrays(3, (5, 3)), arrays(4, (5, 3))
    for levels in ((-6.0, -5.5), (-0.5, 2.0), (3.0, 13.3)):
        np.testing.assert_allclose(
            take(samplers.ddim(1.0), z, noise, *levels),
            take(samplers.ancestral(), z, noise, *levels),
            rtol=1e-10,
            atol=1e-13,
        )


def test_ddim_without_noise_is_deterministic():
    z, noise = arrays(3, (5, 3)), arrays(4, (5, 3))
    np.testing.assert_array_equal(
        take(samplers.ddim(), z, noise, -1.0, 1.0), take(samplers.ddim(0.0), z, -noise, -1.0, 1.0)
    )


@pytest.mark.float32
@pytest.mark.parametrize("log_snr", [-13.0, 0.0, 13.0])
def test_noise_keeps_its_digits_in_float32_over_short_steps(log_snr):
    """From z = 0 with ε̂ = 0 nothing is left but the noise, η √c σ_s."""
    t, s = np.float32(log_snr), np.float32(log_snr + 1e-3)
    zero, one = jnp.zeros((1, 1)), jnp.ones((1, 1))
    got = samplers.ddim(0.5).step(
        lambda z, log_snr: z, zero, (), one, jnp.asarray(t), jnp.asarray(s)
    )[0]
    expected = 0.5 * np.sqrt(-np.expm1(float(t) - float(s))) * scales(float(s))[1]
    np.testing.assert_allclose(got, [[expected]], rtol=1e-5)


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_eta_outside_its_range(eta):
    with pytest.raises(ValueError, match=r"eta must be between 0 .* got"):
        samplers.ddim(eta)
