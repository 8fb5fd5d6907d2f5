"""The process against the definitions of α, σ and Bayes' rule."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import arrays, said_as, scales
from vdm import diffusion

posterior = jax.jit(diffusion.posterior)
q_sample = jax.jit(diffusion.q_sample)
transition = jax.jit(diffusion.transition)
convert = jax.jit(diffusion.convert, static_argnames=("source", "target"))

HEADS = ("eps", "x", "v", "score")
SHAPES = [(49, 3), (1, 2, 3), (7, 2, 3, 1), (5, 2, 2, 3, 2)]


def batch(shape, seed=0):
    return arrays(seed, shape), arrays(seed + 1, shape), np.linspace(-9.0, 11.0, shape[0])


def column(values, like):
    return np.asarray(values).reshape(-1, *(1,) * (like.ndim - 1))


@pytest.mark.parametrize("log_snr", [-30.0, -13.3, -1.0, 0.0, 2.5, 13.3, 30.0])
def test_scales_are_what_defines_the_log_snr(log_snr):
    a, s = diffusion.alpha(jnp.asarray(log_snr)), diffusion.sigma(jnp.asarray(log_snr))
    np.testing.assert_allclose((a, s), scales(log_snr), rtol=1e-13)


@pytest.mark.float32
def test_scales_keep_their_digits_in_float32():
    log_snr = np.asarray([-17.0, -13.3, 13.3, 17.0], np.float32)
    a, s = diffusion.alpha(jnp.asarray(log_snr)), diffusion.sigma(jnp.asarray(log_snr))
    true_a, true_s = scales(log_snr.astype(np.float64))
    np.testing.assert_allclose(a, true_a, rtol=2e-6)
    np.testing.assert_allclose(s, true_s, rtol=2e-6)
    log_alpha_square = jax.nn.log_sigmoid(jnp.asarray(log_snr))
    np.testing.assert_allclose(2 * jnp.log(a)[:2], log_alpha_square[:2], rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_q_sample_noises_each_example_at_its_own_level(shape):
    x, eps, log_snr = batch(shape)
    a, s = (column(part, x) for part in scales(log_snr))
    z = q_sample(x, eps, log_snr)
    np.testing.assert_allclose(z, a * x + s * eps, rtol=1e-12)
    np.testing.assert_array_equal(z[0], q_sample(x, eps, log_snr[0])[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_posterior_is_the_product_of_its_two_gaussians(shape):
    x, z_t, log_snr_t = batch(shape)
    log_snr_s = log_snr_t + np.linspace(0.01, 7.0, shape[0])
    mean, std = posterior(z_t, x, log_snr_t, log_snr_s)

    (a_t, s_t), (a_s, s_s) = (scales(column(level, x)) for level in (log_snr_t, log_snr_s))
    a_ts = a_t / a_s
    var_ts = s_t**2 - a_ts**2 * s_s**2
    precision = 1 / s_s**2 + a_ts**2 / var_ts
    expected = (a_s * x / s_s**2 + a_ts * z_t / var_ts) / precision
    np.testing.assert_allclose(mean, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(std, precision**-0.5, rtol=1e-9)


@pytest.mark.float32
def test_posterior_keeps_its_digits_in_float32_over_short_steps():
    log_snr_t = jnp.asarray([-13.0, 0.0, 13.0])
    log_snr_s = log_snr_t + jnp.asarray([1e-3, 1e-3, 1e-3])
    _, std = posterior(jnp.ones((3, 1)), jnp.ones((3, 1)), log_snr_t, log_snr_s)
    t, s = (np.asarray(level, np.float64) for level in (log_snr_t, log_snr_s))
    expected = np.sqrt(-np.expm1(t - s)) * scales(s)[1]
    np.testing.assert_allclose(std[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_transition_carries_the_process_from_one_level_to_the_next(shape):
    """q(z_t|x) is reached from q(z_s|x): means and variances add up."""
    x, eps, log_snr_t = batch(shape)
    log_snr_s = log_snr_t + np.linspace(0.01, 7.0, shape[0])
    (a_t, s_t), (a_s, s_s) = (scales(column(level, x)) for level in (log_snr_t, log_snr_s))
    mean, std = transition(a_s * x, log_snr_s, log_snr_t)
    np.testing.assert_allclose(mean, a_t * x, rtol=1e-10)
    moved = np.asarray(transition(a_s * x + s_s * eps, log_snr_s, log_snr_t)[0]) - mean
    np.testing.assert_allclose((moved / eps) ** 2 + np.asarray(std) ** 2, s_t**2 + 0 * x, rtol=1e-9)


@pytest.mark.float32
def test_transition_keeps_its_digits_in_float32_over_short_steps():
    log_snr_t = jnp.asarray([-13.0, 0.0, 13.0])
    log_snr_s = log_snr_t + jnp.asarray([1e-3, 1e-3, 1e-3])
    _, std = transition(jnp.ones((3, 1)), log_snr_s, log_snr_t)
    t, s = (np.asarray(level, np.float64) for level in (log_snr_t, log_snr_s))
    expected = np.sqrt(-np.expm1(t - s)) * scales(t)[1]
    np.testing.assert_allclose(std[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(("source", "target"), [*itertools.product(HEADS, HEADS)])
def test_conversions_agree_with_what_was_mixed(source, target):
    x, eps, log_snr = batch((49, 2, 3))
    z = np.asarray(q_sample(x, eps, log_snr))
    prediction = said_as(source, eps, z, log_snr)
    converted = convert(prediction, z, log_snr, source=source, target=target)
    np.testing.assert_allclose(converted, said_as(target, eps, z, log_snr), rtol=1e-8, atol=1e-8)
    back = convert(converted, z, log_snr, source=target, target=source)
    np.testing.assert_allclose(back, prediction, rtol=1e-8, atol=1e-8)


def test_x_is_what_a_perfect_head_says():
    x, eps, log_snr = batch((49, 3))
    z = q_sample(x, eps, log_snr)
    x_hat = convert(eps, z, log_snr, source="eps", target="x")
    np.testing.assert_allclose(x_hat, x, rtol=1e-9, atol=1e-9)


def test_noise_level_that_does_not_fit_the_batch():
    x, eps, _ = batch((5, 2))
    with pytest.raises(ValueError, match=r"shape \(2,\).*expected \(\) or \(5,\)"):
        diffusion.q_sample(jnp.asarray(x), jnp.asarray(eps), jnp.zeros(2))


@pytest.mark.parametrize("names", [("epsilon", "x"), ("x", "velocity")])
def test_unknown_prediction(names):
    x, _, log_snr = batch((5, 2))
    with pytest.raises(ValueError, match=r"unknown prediction '(epsilon|velocity)'"):
        convert(x, x, log_snr, source=names[0], target=names[1])
