"""Noise that stays in its bin, with a weight that is its density, against scipy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from oracles import keys, scales, within
from vdm import dequantisation
from vdm.likelihoods import discretised, gaussian

KINDS = {"uniform": dequantisation.uniform, "truncated_normal": dequantisation.truncated_normal}


def draw(kind, x, log_snr, key=None, levels=17):
    key = jax.random.key(0) if key is None else key
    return jax.jit(KINDS[kind](discretised(levels)).draw)(key, x, jnp.asarray(log_snr))


def integers(shape, levels=17):
    return jnp.asarray(np.random.default_rng(0).integers(0, levels, shape), jnp.int32)


def midpoints(x, levels=17):
    return (2 * np.asarray(x) + 1) / levels - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log_snr", [-4.0, 3.0, 6.0, 20.0])
def test_noise_stays_in_the_bin_and_fills_it(kind, log_snr):
    x = integers((2001, 3))
    z_0, _ = draw(kind, x, log_snr)
    places = (z_0 / scales(log_snr)[0] - midpoints(x)) * 17
    assert np.max(np.abs(places)) <= 1 + 1e-9
    spread = min(1.0, 4 * 17 * np.exp(-0.5 * log_snr))  # σ_0/α_0 in half bins, four times
    assert np.min(places) < -0.7 * spread and np.max(places) > 0.7 * spread


def test_uniform_noise_and_its_weight():
    """Kolmogorov's test of the noise; the weight is the logarithm of the bin's volume in z_0."""
    x, (a, _) = integers((1001, 2, 3)), scales(6.0)
    z_0, log_weight = draw("uniform", x, 6.0)
    places = np.ravel(z_0 / a - midpoints(x))
    assert stats.kstest(places, stats.uniform(-1 / 17, 2 / 17).cdf).pvalue > 1e-4
    np.testing.assert_allclose(log_weight, np.full(1001, 6 * np.log(2 * a / 17)), rtol=1e-12)


@pytest.mark.parametrize(("log_snr", "levels"), [(6.0, 17), (-2.0, 17), (13.3, 256)])
def test_truncated_noise_and_its_weight(log_snr, levels):
    x, (a, s) = integers((1001, 2, 3), levels), scales(log_snr)
    z_0, log_weight = draw("truncated_normal", x, log_snr, levels=levels)
    tau = np.exp(log_snr / 2) / levels
    noise = (np.asarray(z_0) - a * midpoints(x, levels)) / s
    law = stats.truncnorm(-tau, tau)
    assert stats.kstest(noise.ravel(), law.cdf).pvalue > 1e-4
    density = law.logpdf(np.clip(noise, -tau, tau)) - np.log(s)
    np.testing.assert_allclose(log_weight, -density.sum((1, 2)), rtol=1e-6)
    assert within(log_weight / 6, law.entropy() + np.log(s))


def test_mean_weight_at_the_end_point_in_use():
    """H = −5.2463 nats per dimension at λ_max = 13.3 for 256 levels."""
    _, log_weight = draw("truncated_normal", integers((20001, 3), 256), 13.3, levels=256)
    tau = np.exp(13.3 / 2) / 256
    entropy = stats.truncnorm(-tau, tau).entropy() + np.log(scales(13.3)[1])
    assert abs(entropy + 5.2463) < 5e-5
    assert within(log_weight / 3, entropy)


def test_the_farthest_draw_stays_finite(monkeypatch):
    """At λ = 20 the mass of the bin rounds to 1, and u = −1 can be drawn."""
    monkeypatch.setattr(dequantisation.draws, "uniform", lambda key, shape, dtype: jnp.zeros(shape))
    kind = dequantisation.truncated_normal(discretised(17))
    z_0, log_weight = kind.draw(jax.random.key(0), integers((2, 3)), jnp.asarray(20.0))
    assert np.all(np.isfinite(z_0)) and np.all(np.isfinite(log_weight))


@pytest.mark.float32
@pytest.mark.parametrize("kind", KINDS)
def test_float32_agrees_with_float64(kind, monkeypatch):
    u = np.random.default_rng(0).random((49, 3))
    x, results = np.asarray(integers((49, 3), 256)), []
    monkeypatch.setattr(
        dequantisation.draws, "uniform", lambda key, shape, dtype: jnp.asarray(u, dtype)
    )
    for precision in (np.float32, np.float64):
        jax.config.update("jax_enable_x64", precision is np.float64)
        value = KINDS[kind](discretised(256))
        results.append(value.draw(jax.random.key(0), jnp.asarray(x), jnp.asarray(13.3, precision)))
        assert results[-1][0].dtype == results[-1][1].dtype == precision
    np.testing.assert_allclose(results[0][0], results[1][0], atol=3e-7)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_follow_their_keys_and_levels(kind):
    x, batch = integers((5, 2)), keys(0, 5)
    together = draw(kind, x, 3.0, batch)
    order = jnp.asarray([3, 1])
    for alone, rows in zip(draw(kind, x[order], 3.0, batch[order]), together, strict=True):
        np.testing.assert_array_equal(alone, rows[order])
    several = draw(kind, x, [1.0, 3.0, 2.0, 3.0, 5.0], batch)
    for one, rows in zip(several, together, strict=True):
        np.testing.assert_allclose(one[np.asarray([1, 3])], rows[np.asarray([1, 3])], rtol=1e-12)
        assert not np.allclose(one[0], rows[0])


def test_real_data_is_a_change_of_variables():
    """A density of z_0 becomes one of x that integrates to one: mean and std per entry."""
    likelihood = gaussian(0.1, (0.4, -1.5), (0.2, 3.5))
    x = np.random.default_rng(0).normal(size=(7, 5, 2))
    z_0, log_weight = jax.jit(dequantisation.continuous(likelihood).draw)(
        jax.random.key(0), jnp.asarray(x), jnp.asarray(1.0)
    )
    a = scales(1.0)[0]
    np.testing.assert_allclose(z_0, a * (x - [0.4, -1.5]) / [0.2, 3.5], rtol=1e-12)
    of_x = stats.norm([0.4, -1.5], np.asarray([0.2, 3.5]) / a).logpdf(x).sum((1, 2))
    np.testing.assert_allclose(stats.norm.logpdf(z_0).sum((1, 2)) + log_weight, of_x, rtol=1e-12)


def test_the_right_one_for_the_data():
    integer, real = discretised(8), gaussian(0.1)
    assert dequantisation.dequantiser(integer, "uniform") == dequantisation.uniform(integer)
    default = dequantisation.truncated_normal(integer)
    assert dequantisation.dequantiser(integer, None) == default
    assert dequantisation.dequantiser(integer, "truncated_normal") == default
    assert dequantisation.dequantiser(real, None) == dequantisation.continuous(real)
    assert hash(default) == hash(dequantisation.truncated_normal(discretised(8)))
    for value in (default, dequantisation.uniform(integer), dequantisation.continuous(real)):
        assert isinstance(value, dequantisation.Dequantisation)


class Odd:
    """A likelihood of another kind."""

    def encode(self, x):
        return x

    def log_prob(self, x, z_0, log_snr):
        return x

    def decode(self, z_0, log_snr):
        return z_0

    def draw(self, key, z_0, log_snr):
        return z_0

    levels = None
    bounds = None


def test_names_and_data_that_do_not_go_together():
    with pytest.raises(ValueError, match=r"unknown dequantisation 'unform'.*'uniform'"):
        dequantisation.dequantiser(discretised(8), "unform")
    with pytest.raises(ValueError, match=r"real data needs no dequantisation: got 'uniform'"):
        dequantisation.dequantiser(gaussian(0.1), "uniform")
    with pytest.raises(TypeError, match="expected a discretised or Gaussian likelihood"):
        dequantisation.dequantiser(Odd(), None)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_data_and_keys(kind):
    value = KINDS[kind](discretised(8))
    with pytest.raises(TypeError, match="models integers"):
        value.draw(jax.random.key(0), jnp.zeros((5, 2)), jnp.asarray(1.0))
    with pytest.raises(ValueError, match=r"\(\) or \(5,\)"):
        value.draw(keys(0, 4), integers((5, 2)) % 8, jnp.asarray(1.0))
    with pytest.raises(TypeError, match="typed key"):
        value.draw(jnp.zeros(2, jnp.uint32), integers((5, 2)) % 8, jnp.asarray(1.0))


def test_copies_of_a_constant_give_that_constant():
    constant = jnp.asarray([-700.0, -3.0, 0.0, 5e3])
    for count in (1, 2, 7):
        many = jnp.tile(constant, (count, 1))
        np.testing.assert_allclose(dequantisation.importance_weighted(many), constant, rtol=1e-12)


def test_importance_weighted_is_the_logarithm_of_the_mean():
    values = np.random.default_rng(0).normal(-2.0, 3.0, (5, 7))
    got = dequantisation.importance_weighted(jnp.asarray(values))
    np.testing.assert_allclose(got, np.log(np.exp(values).mean(0)), rtol=1e-12)
    assert np.all(got > values.mean(0))
