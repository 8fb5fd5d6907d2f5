"""Grids of noise levels: their formulas, their exact ends, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm import schedules
from vdm.samplers import grids

LOG_SNR_FN = schedules.cosine(9.0, -7.0)


def log_snr_fn(t):
    return LOG_SNR_FN.log_snr(LOG_SNR_FN.init(jax.random.key(0)), t)


def test_uniform_in_time_is_the_schedule_from_its_noisy_end():
    times = np.asarray([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    expected = [float(log_snr_fn(jnp.asarray(t))) for t in times]
    np.testing.assert_allclose(grids.uniform_in_time(log_snr_fn, 5), expected, rtol=1e-12)


def test_uniform_in_lambda():
    np.testing.assert_allclose(grids.uniform(3.0, -5.0, 4), [-5, -3, -1, 1, 3], rtol=1e-15)


@pytest.mark.parametrize("rho", [1.0, 7.0, 20.0])
def test_edm_grid_is_equation_5(rho):
    """Karras et al. 2022, eq. 5, in σ from its largest to its smallest value."""
    sigma_max, sigma_min, n = 80.0, 0.002, 18
    i = np.arange(n)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + i / (n - 1) * (low - high)) ** rho
    grid = grids.edm(-2 * np.log(sigma_min), -2 * np.log(sigma_max), n - 1, rho)
    np.testing.assert_allclose(np.exp(-0.5 * np.asarray(grid)), sigmas, rtol=1e-10)


def test_edm_grid_between_its_limits():
    """ρ → ∞ is uniform in λ; ρ → 0 stays at the noisy end, without overflow."""
    even = np.asarray(grids.uniform(9.0, -7.0, 8))
    np.testing.assert_allclose(grids.edm(9.0, -7.0, 8, 1e5), even, atol=1e-3)
    small = np.asarray(grids.edm(9.0, -7.0, 8, 1e-3))
    assert np.all(np.isfinite(small)) and np.all(np.diff(small) > 0)
    assert np.all(small[:-1] < -6.99) and small[-1] == 9.0


@pytest.mark.float32
@pytest.mark.parametrize("num_steps", [1, 2, 49, 1000])
def test_ends_are_exact_and_steps_go_up_in_float32(num_steps):
    for grid in (
        grids.uniform(13.3, -7.1, num_steps),
        grids.edm(13.3, -7.1, num_steps),
        grids.edm(13.3, -7.1, num_steps, 0.9),
    ):
        assert grid.dtype == jnp.float32 and grid.shape == (num_steps + 1,)
        assert grid[0] == np.float32(-7.1) and grid[-1] == np.float32(13.3)
        assert np.all(np.diff(grid) > 0)


def test_ends_may_be_traced():
    """A grid moves with its ends: by λ_max/λ_min's weights i/N in the even grid."""
    ends = jnp.asarray(9.0), jnp.asarray(-7.0)
    high, low = jax.jit(jax.jacobian(lambda *ends: grids.uniform(*ends, 4), (0, 1)))(*ends)
    np.testing.assert_allclose(high, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(low, [1, 0.75, 0.5, 0.25, 0])
    high, low = jax.jit(jax.jacobian(lambda *ends: grids.edm(*ends, 4), (0, 1)))(*ends)
    # Both ends moved alike move every level alike.
    np.testing.assert_allclose(high + low, np.ones(5), rtol=1e-12)
    np.testing.assert_array_equal((high[0], high[-1]), (0, 1))


def test_grids_by_name():
    for name, expected in (
        ("time", grids.uniform_in_time(log_snr_fn, 7)),
        ("lambda", grids.uniform(9.0, -7.0, 7)),
        ("edm", grids.edm(9.0, -7.0, 7)),
    ):
        got = grids.on_schedule(name, log_snr_fn, 7)
        np.testing.assert_allclose(got, expected, rtol=1e-9)
    assert set(grids.GRIDS) == {"time", "lambda", "edm"}
    given = np.asarray([-1.0, 0.5, 2.0])
    np.testing.assert_array_equal(grids.on_schedule(given, log_snr_fn, None), given)


def test_bad_grids():
    with pytest.raises(ValueError, match=r"unknown grid 'lamda'.*Did you mean 'lambda'"):
        grids.on_schedule("lamda", log_snr_fn, 3)
    with pytest.raises(ValueError, match="grid 'edm' needs num_steps"):
        grids.on_schedule("edm", log_snr_fn, None)
    with pytest.raises(
        ValueError, match="number of steps itself: got num_steps=3 and 2 noise levels"
    ):
        grids.on_schedule(np.asarray([-1.0, 1.0]), log_snr_fn, 3)


@pytest.mark.parametrize(
    "build",
    [
        lambda n: grids.uniform_in_time(log_snr_fn, n),
        lambda n: grids.uniform(1.0, -1.0, n),
        lambda n: grids.edm(1.0, -1.0, n),
    ],
)
@pytest.mark.parametrize("num_steps", [0, -2])
def test_too_few_steps(build, num_steps):
    with pytest.raises(ValueError, match=f"num_steps must be at least 1: got {num_steps}"):
        build(num_steps)


@pytest.mark.usefixtures("unchecked")
def test_steps_that_are_not_whole():
    with pytest.raises(TypeError, match=r"num_steps must be a whole number: got 2\.5"):
        grids.uniform(1.0, -1.0, 2.5)


@pytest.mark.parametrize("build", [grids.uniform, grids.edm])
def test_ends_that_are_not_in_order(build):
    with pytest.raises(ValueError, match=r"log_snr_max must be above .*got log_snr_max=-1\.0"):
        build(-1.0, 1.0, 3)
    with pytest.raises(ValueError, match="log_snr_max must be above"):
        build(jnp.asarray(1.0), jnp.asarray(1.0), 3)
    with pytest.raises(ValueError, match="must be finite: got inf"):
        build(float("inf"), 0.0, 3)


@pytest.mark.parametrize("rho", [0.0, -7.0, float("inf"), float("nan")])
def test_rho_that_is_not_positive(rho):
    with pytest.raises(ValueError, match="rho must be positive and finite: got"):
        grids.edm(1.0, -1.0, 3, rho)
