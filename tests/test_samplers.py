"""Sampling with exact denoisers, whose law at any number of steps is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import SKEWED, exact_eps, keys, scales, within
from vdm import samplers
from vdm.diffusion import convert

MEAN = np.asarray([0.7, -0.3, 1.1])
COVARIANCE = np.asarray([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.8]])
GRID = np.linspace(-5.0, 4.0, 13)


def correlated_eps(z, log_snr):
    """E[ε|z] = σ (α²C + σ²I)⁻¹ (z − α m) for data N(m, C)."""
    a, s = scales(log_snr)
    total = a**2 * COVARIANCE + s**2 * jnp.eye(3)
    return s * jnp.linalg.solve(total, (z - a * MEAN[None]).T).T


def transition(log_snr_t, log_snr_s):
    """q(z_s|z_t, x) = N(A z_t + B x, V), by Bayes' rule from q(z_s|x) q(z_t|z_s)."""
    (a_t, s_t), (a_s, s_s) = scales(log_snr_t), scales(log_snr_s)
    a_ts = a_t / a_s
    var_ts = s_t**2 - a_ts**2 * s_s**2
    variance = 1 / (1 / s_s**2 + a_ts**2 / var_ts)
    return variance * a_ts / var_ts, variance * a_s / s_s**2, variance


def exact_moments(grid):
    """The mean and covariance of z along the chain, which is linear in z for Gaussian data."""
    mean, cov = np.zeros(3), np.eye(3)
    for t, s in itertools.pairwise(grid):
        from_z, from_x, variance = transition(float(t), float(s))
        a, noise = scales(float(t))
        gain = a * COVARIANCE @ np.linalg.inv(a**2 * COVARIANCE + noise**2 * np.eye(3))
        matrix = from_z * np.eye(3) + from_x * gain
        mean = matrix @ mean + from_x * (MEAN - a * gain @ MEAN)
        cov = matrix @ cov @ matrix.T + variance * np.eye(3)
    return mean, cov


def test_ancestral_chain_of_gaussian_data_at_few_steps():
    draw = jax.jit(lambda key: samplers.sample(key, correlated_eps, jnp.asarray(GRID), (20001, 3)))
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
        from_z, from_x, variance = transition(float(t), float(s))
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


@pytest.mark.parametrize(("log_snr_t", "log_snr_s"), [(-5.0, -4.0), (-1.0, 0.5), (2.0, 13.3)])
def test_a_step_with_known_data_lands_on_the_process(log_snr_t, log_snr_s):
    x = jnp.asarray([[0.9, -0.4]])
    (a_t, s_t), (a_s, s_s) = scales(log_snr_t), scales(log_snr_s)

    def step(z_t, noise):
        return samplers.ancestral().step(
            lambda z, log_snr: convert(x, z, log_snr, source="x", target="eps"),
            z_t,
            noise,
            jnp.asarray(log_snr_t),
            jnp.asarray(log_snr_s),
        )

    zero, one = jnp.zeros((1, 2)), jnp.ones((1, 2))
    centre = step(a_t * x, zero)
    spread = np.hypot(step(a_t * x + s_t, zero) - centre, step(a_t * x, one) - centre)
    np.testing.assert_allclose(centre, a_s * x, rtol=1e-10)
    np.testing.assert_allclose(spread, s_s, rtol=1e-10)


def test_samples_follow_their_own_keys():
    draw = jax.jit(
        lambda key: samplers.sample(key, exact_eps(SKEWED), jnp.asarray(GRID), (len(key), 2, 1))
    )
    batch = keys(3, 7)
    np.testing.assert_array_equal(draw(batch)[4], draw(batch[jnp.asarray([4, 0])])[0])


def test_a_sampler_is_a_name_or_a_value():
    def draw(sampler):
        return samplers.sample(
            jax.random.key(0), correlated_eps, jnp.asarray(GRID), (5, 3), sampler=sampler
        )

    np.testing.assert_array_equal(draw("ancestral"), draw(samplers.ancestral()))
    assert samplers.ancestral() == samplers.ancestral()


@pytest.mark.float32
def test_samples_stay_float32():
    z = samplers.sample(jax.random.key(0), lambda z, log_snr: z, jnp.asarray([-1.0, 1.0]), (1, 2))
    assert z.dtype == jnp.float32


def attempt(grid=(-1.0, 1.0), sampler="ancestral", key=None):
    key = jax.random.key(0) if key is None else key
    return samplers.sample(key, lambda z, log_snr: z, jnp.asarray(grid), (3, 2), sampler=sampler)


def test_unknown_sampler():
    with pytest.raises(ValueError, match=r"unknown sampler 'ancestrall'.*Did you mean 'ancestral'"):
        attempt(sampler="ancestrall")


@pytest.mark.parametrize("grid", [(1.0, -1.0), (-1.0, 0.0, 0.0, 1.0), (-1.0, float("nan"))])
def test_grid_that_does_not_increase(grid):
    with pytest.raises(ValueError, match="increase strictly"):
        attempt(grid)


def test_grid_without_a_step():
    with pytest.raises(ValueError, match="at least one step: got a grid of 1"):
        attempt((1.0,))


@pytest.mark.usefixtures("unchecked")
def test_keys_that_do_not_fit():
    with pytest.raises(TypeError, match="typed key"):
        attempt(key=jnp.zeros(2, jnp.uint32))
    with pytest.raises(ValueError, match=r"\(\) or \(3,\)"):
        attempt(key=keys(0, 4))
