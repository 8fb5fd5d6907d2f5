"""Times: each uniform by itself, and the spread ones far steadier together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import keys
from scipy import stats

from vdm import noise_levels

ALL = [noise_levels.uniform, noise_levels.low_discrepancy, noise_levels.stratified]
SIZES = [1, 49, 98, 103]


@pytest.mark.parametrize("draw", ALL)
@pytest.mark.parametrize("n", SIZES)
def test_there_are_n_times_in_the_interval(draw, n):
    t = np.asarray(draw(jax.random.key(n), n))
    assert t.shape == (n,) and np.all((t >= 0) & (t < 1))


@pytest.mark.parametrize("n", SIZES)
def test_low_discrepancy_is_evenly_spaced(n):
    t = np.sort(noise_levels.low_discrepancy(jax.random.key(n), n))
    gaps = np.diff(np.append(t, t[0] + 1))
    np.testing.assert_allclose(gaps, 1 / n, atol=1e-14)


@pytest.mark.parametrize("n", SIZES)
def test_stratified_has_one_time_in_each_stratum(n):
    t = np.asarray(noise_levels.stratified(jax.random.key(n), n))
    np.testing.assert_array_equal(np.floor(t * n), np.arange(n))


@pytest.mark.parametrize("draw", [noise_levels.uniform, noise_levels.low_discrepancy])
@pytest.mark.parametrize("position", [0, 30, 48])
def test_each_time_is_uniform_by_itself(draw, position):
    t = jax.vmap(lambda key: draw(key, 49)[position])(keys(1, 2000))
    assert stats.kstest(np.asarray(t), "uniform").pvalue > 1e-4


def test_stratified_times_are_uniform_in_their_strata():
    t = jax.vmap(lambda key: noise_levels.stratified(key, 7))(keys(2, 2000))
    assert stats.kstest(np.asarray(7 * t[:, 3] - 3), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("draw", [noise_levels.low_discrepancy, noise_levels.stratified])
def test_spread_times_estimate_an_integral_far_better(draw):
    def estimates(draw):
        means = jax.vmap(lambda key: jnp.mean(jnp.exp(2 * draw(key, 49))))(keys(3, 500))
        return np.asarray(means) - (np.exp(2) - 1) / 2

    spread, independent = estimates(draw), estimates(noise_levels.uniform)
    assert abs(spread.mean()) < 5 * spread.std() / np.sqrt(500)
    assert spread.var() < independent.var() / 30


@pytest.mark.float32
@pytest.mark.parametrize("draw", ALL)
def test_times_stay_float32(draw):
    assert draw(jax.random.key(0), 3).dtype == jnp.float32
