"""The linear denoiser's error: by solving, by quadrature, and as a control."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import (
    SKEWED_2D,
    arrays,
    exact_eps,
    expectation,
    interval,
    keys,
    normal,
    scales,
    within,
)
from vdm import control_variate as cv, losses, noise_levels

HIGH, LOW = 6.0, -4.0
MIX = np.asarray([[0.9, 0.0, 0.1], [0.4, 0.5, 0.0], [-0.3, 0.2, 0.2]])
TRAIN = arrays(0, (49, 3)) @ MIX.T + np.asarray([0.5, -1.0, 0.2])
CONTROL = cv.gaussian_control(jnp.asarray(TRAIN))
POINTS = jnp.asarray(arrays(1, (5, 3)))


def linear_eps(z, log_snr):
    """σ (α² C + σ² I)⁻¹ (z − α μ) with the moments that NumPy finds."""
    a, s = scales(log_snr)
    total = a**2 * np.cov(TRAIN.T, ddof=0) + s**2 * jnp.eye(3)
    return s * jnp.linalg.solve(total, (z - a * TRAIN.mean(0)[None]).T).T


def levels_between(u):
    return noise_levels.sigmoid_law(u, HIGH, LOW)


def level_control(x, levels, eps, control=CONTROL):
    return cv.level_control(control, x, levels, eps, log_snr_max=HIGH, log_snr_min=LOW)


def test_moments_are_the_data_s():
    rebuilt = CONTROL.eigenvectors * CONTROL.eigenvalues[None] @ CONTROL.eigenvectors.T
    np.testing.assert_allclose(rebuilt, np.cov(TRAIN.T, ddof=0), atol=1e-12)
    np.testing.assert_allclose(CONTROL.mean, TRAIN.mean(0), rtol=1e-12)


@pytest.mark.parametrize("log_snr", [-9.0, -1.0, 2.5, 11.0])
def test_error_is_that_of_the_linear_denoiser(log_snr):
    eps, log_snr = jnp.asarray(arrays(2, (5, 3))), jnp.asarray(log_snr)
    expected = losses.noise_error(POINTS, eps, log_snr, linear_eps)
    np.testing.assert_allclose(cv.linear_error(CONTROL, POINTS, eps, log_snr), expected, rtol=1e-7)


def test_every_example_has_its_own_level_and_data_any_shape():
    levels, eps = jnp.linspace(-3.0, 5.0, 5), jnp.asarray(arrays(3, (5, 3, 1)))
    x = POINTS[..., None]
    error = cv.linear_error(CONTROL, x, eps, levels)
    given = cv.linear_error_given_x(CONTROL, x, levels)
    for n in range(5):
        one = slice(n, n + 1)
        alone = cv.linear_error(CONTROL, POINTS[one], eps[one, :, 0], levels[n])
        np.testing.assert_allclose(error[n], alone[0], rtol=1e-12)
        alone = cv.linear_error_given_x(CONTROL, POINTS[one], levels[n])
        np.testing.assert_allclose(given[n], alone[0], rtol=1e-12)


@pytest.mark.parametrize("log_snr", [-4.0, 1.0, 7.0])
def test_mean_over_the_noise_by_quadrature(log_snr):
    expected = expectation(
        lambda x, eps: losses.noise_error(x, eps, jnp.asarray(log_snr), linear_eps),
        POINTS,
        normal(25, 3),
    )
    given = cv.linear_error_given_x(CONTROL, POINTS, jnp.asarray(log_snr))
    np.testing.assert_allclose(given, expected, rtol=1e-9)


def test_mean_over_the_training_data():
    """Data of exactly these two moments: the training data themselves."""
    log_snrs = jnp.linspace(-6.0, 8.0, 5)
    given = [cv.linear_error_given_x(CONTROL, jnp.asarray(TRAIN), level) for level in log_snrs]
    mean = cv.linear_error_mean(CONTROL, log_snrs)
    np.testing.assert_allclose(mean, np.mean(given, axis=1), rtol=1e-10)
    np.testing.assert_allclose(cv.linear_error_mean(CONTROL, log_snrs[2]), mean[2], rtol=1e-12)


def test_diffusion_term_by_quadrature():
    nodes, weights = interval(80, LOW, HIGH)
    given = [cv.linear_error_given_x(CONTROL, POINTS, jnp.asarray(node)) for node in nodes]
    expected = 0.5 * weights @ np.asarray(given)
    got = cv.linear_diffusion(CONTROL, POINTS, HIGH, LOW)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    mean = np.mean(cv.linear_diffusion(CONTROL, jnp.asarray(TRAIN), HIGH, LOW))
    v = np.linalg.eigvalsh(np.cov(TRAIN.T, ddof=0))
    exact = 0.5 * np.sum(np.log1p(v * np.exp(HIGH)) - np.log1p(v * np.exp(LOW)))
    np.testing.assert_allclose(mean, exact, rtol=1e-10)


def test_constant_dimensions_and_the_floor():
    """No variance, no gain: the error is SNR y² there, whatever the noise; a floor bounds it."""
    flat = jnp.asarray(np.pad(TRAIN, ((0, 0), (0, 2)), constant_values=0.3))
    control = cv.gaussian_control(flat)
    x = jnp.pad(POINTS, ((0, 0), (0, 2)), constant_values=0.7)
    eps = jnp.asarray(arrays(4, (5, 5)))
    expected = cv.linear_error(CONTROL, POINTS, eps[:, :3], jnp.asarray(2.0))
    got = cv.linear_error(control, x, eps, jnp.asarray(2.0))
    np.testing.assert_allclose(got, expected + 2 * np.exp(2.0) * 0.4**2, rtol=1e-9)
    assert np.all(np.isfinite(cv.linear_diffusion(control, x, HIGH, LOW)))
    raised = cv.gaussian_control(flat, floor=0.01).eigenvalues
    np.testing.assert_allclose(raised, np.maximum(control.eigenvalues, 0.01), rtol=1e-12)
    assert np.sum(np.asarray(raised) == 0.01) == 2


def test_gaussian_data_leave_no_variance():
    """Where the denoiser is the linear one, each draw less its control is the closed form."""
    n = 9
    x, eps = jnp.asarray(arrays(5, (n, 3))), jnp.asarray(arrays(6, (n, 3)))
    levels = levels_between(jnp.linspace(0.02, 0.97, n))

    def eps_fn(z, log_snr):
        each = [linear_eps(z[i : i + 1], log_snr[i]) for i in range(n)]
        return jnp.concatenate(each)

    drawn = losses.diffusion_loss_at(x, levels, eps, eps_fn)
    exact = cv.linear_diffusion(CONTROL, x, HIGH, LOW)
    np.testing.assert_allclose(drawn - level_control(x, levels, eps), exact, rtol=1e-8)
    given = cv.linear_error_given_x(CONTROL, x, levels.log_snr)
    left = drawn - cv.noise_control(CONTROL, x, levels, eps)
    np.testing.assert_allclose(left, 0.5 * levels.inverse_density * given, rtol=1e-8)
    assert np.std(drawn) > 0.1


def test_controls_are_zero_in_the_mean_for_every_example():
    @jax.jit
    @jax.vmap
    def draw(key):
        key_u, key_eps = jax.random.split(key)
        levels = levels_between(noise_levels.stratified(key_u, 5))
        eps = jax.random.normal(key_eps, (5, 3))
        return jnp.stack(
            [cv.noise_control(CONTROL, POINTS, levels, eps), level_control(POINTS, levels, eps)]
        )

    drawn = np.asarray(draw(keys(2, 4000)))
    assert within(drawn, 0.0)
    assert np.all(drawn.std(0) > 0.01)


def test_a_mixture_s_estimate_keeps_its_mean_and_loses_variance():
    """For every x alone: the exact denoiser of a skewed mixture, near to linear at low λ."""
    moments = np.asarray(SKEWED_2D.weights), np.asarray(SKEWED_2D.means)
    mean = moments[0] @ moments[1]
    centred = moments[1] - mean
    covariance = (moments[0][:, None] * centred).T @ centred
    covariance += moments[0] @ np.asarray(SKEWED_2D.widths) ** 2 * np.eye(2)
    values, vectors = np.linalg.eigh(covariance)
    control = cv.Control(*map(jnp.asarray, (mean, vectors, values)))
    x = jnp.asarray([[-0.5, 0.3], [0.9, -0.6], [-0.1, 0.4]])

    @jax.jit
    @jax.vmap
    def draw(key):
        key_u, key_eps = jax.random.split(key)
        levels = levels_between(noise_levels.uniform(key_u, 3))
        eps = jax.random.normal(key_eps, (3, 2))
        plain = losses.diffusion_loss_at(x, levels, eps, exact_eps(SKEWED_2D))
        by_noise = cv.noise_control(control, x, levels, eps)
        by_level = level_control(x, levels, eps, control)
        return jnp.stack([plain, plain - by_noise, plain - by_level])

    drawn = np.asarray(draw(keys(3, 8000)))
    truth = expectation(
        lambda x, u, eps: losses.diffusion_loss_at(x, levels_between(u), eps, exact_eps(SKEWED_2D)),
        x,
        interval(40),
        normal(41, 2),
    )
    assert within(drawn, truth)
    plain, by_noise, by_level = drawn.var(0)
    assert np.all(by_noise < 0.9 * plain) and np.all(by_level < 0.7 * plain)


# --- fitted coefficients -----------------------------------------------------------------


def test_coefficients_are_the_regression_of_the_other_folds():
    values, controls = arrays(7, (11,)), arrays(8, (11,))
    got = cv.cross_fitted(jnp.asarray(values), jnp.asarray(controls), num_folds=3)
    for n in range(11):
        others = np.arange(11) % 3 != n % 3
        centred = values[others] - values[others].mean()
        c = np.linalg.lstsq(controls[others, None], centred, rcond=None)[0]
        np.testing.assert_allclose(got[n], values[n] - controls[n] * c[0], rtol=1e-10)


def test_a_control_without_any_draw_takes_nothing():
    values = arrays(9, (6,))
    np.testing.assert_array_equal(cv.cross_fitted(jnp.asarray(values), jnp.zeros(6)), values)


def test_cross_fitting_keeps_the_mean_of_few_examples():
    """Values u², controls u³ − 3u + u² − 1: fitted on all six the mean is biased, so not here."""

    def draw(key):
        u = jax.random.normal(key, (6,))
        values, control = u**2, u**3 - 3 * u + u**2 - 1
        c = jnp.sum((values - values.mean()) * control) / jnp.sum(control**2)
        fitted = cv.cross_fitted(values, control, num_folds=3)
        return jnp.mean(fitted), jnp.mean(values - c * control)

    fitted, biased = jax.jit(jax.vmap(draw))(keys(4, 4000))
    assert within(fitted, 1.0)
    assert not within(biased, 1.0)


# --- what is refused ---------------------------------------------------------------------


def test_refused_numbers():
    with pytest.raises(ValueError, match="at least two examples: got 1"):
        cv.gaussian_control(jnp.ones((1, 3)))
    for floor in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="floor must not be negative"):
            cv.gaussian_control(jnp.ones((4, 3)), floor=floor)
    for num_folds in (1, 5):
        with pytest.raises(ValueError, match="from 2 to the number of examples, 4: got"):
            cv.cross_fitted(jnp.ones(4), jnp.ones(4), num_folds=num_folds)
    with pytest.raises(ValueError, match="one value per example"):
        cv.linear_error(CONTROL, POINTS, POINTS, jnp.zeros(4))


@pytest.mark.float32
def test_float32_at_the_ends():
    """Few digits are lost at λ = 13.3 and −13.3."""
    control = cv.gaussian_control(jnp.asarray(TRAIN))
    x, eps = jnp.asarray(arrays(1, (5, 3))), jnp.asarray(arrays(2, (5, 3)))
    assert x.dtype == jnp.float32
    mean, vectors, values, far, noise = (np.asarray(v, np.float64) for v in (*control, x, eps))
    far, noise = (far - mean) @ vectors, noise @ vectors
    for log_snr in (-13.3, 13.3):
        snr = np.exp(log_snr)
        gain, leak = values * snr / (1 + values * snr), np.sqrt(snr) / (1 + values * snr)
        got = cv.linear_error(control, x, eps, jnp.asarray(log_snr))
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, np.sum((gain * noise - leak * far) ** 2, 1), rtol=1e-4)
