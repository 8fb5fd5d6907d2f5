"""Probabilities of data under the ODE, held against sums over all data and exact bins."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from oracles import (
    ExactHead,
    exact_eps,
    gaussian_data,
    grid_of_levels,
    interval,
    keys,
    scales,
    skewed_probs,
    table,
    within,
)
from vdm import VDM, dequantisation, ode
from vdm.dequantisation import importance_weighted
from vdm.likelihoods import discretised, gaussian
from vdm.ode import marginal
from vdm.schedules import linear

LEVELS, TOP, BOTTOM = 8, 5.0, -25.0
PROBS = skewed_probs((LEVELS,), seed=3)
ENDS = {"log_snr_max": jnp.asarray(TOP), "log_snr_min": jnp.asarray(BOTTOM)}


def bin_probabilities():
    """P(z_0/α_0 in bin x) for z_0 = α_0 x' + σ_0 ε, x' ~ PROBS: what leaks is counted."""
    centres = (2 * np.arange(LEVELS) + 1) / LEVELS - 1
    edges = np.linspace(-1, 1, LEVELS + 1)
    below = stats.norm.cdf(edges[:, None], centres[None], np.exp(-TOP / 2)) @ PROBS
    return np.diff(below)


EXACT = exact_eps(table(PROBS, LEVELS))
EXACT_2D = exact_eps(table(skewed_probs((4, 4)), 4))


def wrong(z, log_snr):
    return EXACT_2D(z, log_snr) + 0.3 * jnp.exp(-0.1 * log_snr**2) * jnp.sin(2 * z[:, ::-1])


@functools.partial(jax.jit, static_argnums=0)
def density(eps_fn, z_0, top):
    return ode.log_prob(jax.random.key(0), eps_fn, z_0, log_snr_max=top, log_snr_min=BOTTOM,
                        steps=ode.adaptive(1e-6, 1e-6))  # fmt: skip


def log_weights(monkeypatch, kind, eps_fn, x, nodes, top=TOP, levels=LEVELS):
    """log p(z_0) + log_weight, [x, node], with the nodes of a quadrature for the draws of u."""
    rows, u = np.repeat(x, len(nodes), axis=0), np.tile(nodes, (len(x), 1))
    monkeypatch.setattr(dequantisation.draws, "uniform", lambda *_: jnp.asarray(u))
    value = dequantisation.dequantiser(discretised(levels), kind)
    z_0, log_weight = value.draw(jax.random.key(0), jnp.asarray(rows, jnp.int32), jnp.asarray(top))
    values = log_weight + density(eps_fn, z_0, top)
    return np.asarray(values).reshape(len(x), len(nodes))


@pytest.mark.parametrize("kind", ["uniform", "truncated_normal"])
def test_bins_have_the_probability_of_the_model(kind, monkeypatch):
    """Σ_u weight(u) exp(log p + log_weight) is P(x), whatever law the noise has."""
    u, weights = interval(24)
    values = log_weights(monkeypatch, kind, EXACT, grid_of_levels(1, LEVELS), u[:, None])
    probabilities = np.exp(values) @ weights
    np.testing.assert_allclose(probabilities, bin_probabilities(), atol=2e-5)
    assert 0.98 < probabilities.sum() < 1.0
    bound = values @ weights
    assert np.all(bound < np.log(probabilities))
    assert np.exp(bound).sum() < probabilities.sum()


def test_truncated_noise_is_tighter_where_the_denoiser_is_exact(monkeypatch):
    """It is what z_0 is in truth, once the bins are wide beside the noise."""
    (u, weights), x = interval(24), grid_of_levels(1, LEVELS)
    gaps = {}
    for kind in ("uniform", "truncated_normal"):
        values = log_weights(monkeypatch, kind, EXACT, x, u[:, None], top=6.5)
        gaps[kind] = PROBS @ (np.log(PROBS) - values @ weights)
    assert 0 < gaps["truncated_normal"] < 0.01 < 0.1 < gaps["uniform"]


@pytest.mark.parametrize("kind", ["uniform", "truncated_normal"])
def test_bound_of_any_network_sums_to_less_than_one(kind, monkeypatch):
    """Two pixels, and a network that is wrong: what is certain is Σ_x P(x) ≤ 1."""
    u, weights = interval(6)
    nodes = np.stack(np.meshgrid(u, u, indexing="ij"), -1).reshape(-1, 2)
    weights = np.outer(weights, weights).ravel()
    values = log_weights(monkeypatch, kind, wrong, grid_of_levels(2, 4), nodes, top=4.0, levels=4)
    bound, probabilities = np.exp(values @ weights).sum(), (np.exp(values) @ weights).sum()
    assert 0.5 < bound < probabilities < 1.0


@functools.partial(jax.jit, static_argnames=("eps_fn", "likelihood", "options"))
def drawn(key, x, eps_fn, likelihood, options):
    return marginal.log_weights(key, x, eps_fn, likelihood, **ENDS, **dict(options)).log_weights


def log_likelihood(*args):
    return importance_weighted(drawn(*args))


@pytest.mark.parametrize("kind", ["uniform", "truncated_normal"])
def test_mean_likelihood_of_many_samples_is_the_probability(kind):
    """The average of K weights is unbiased for every K; its logarithm is not, but rises."""
    mean_log = []
    x = jnp.full((1201, 1), 2, jnp.int32)
    options = (("dequantisation", kind), ("num_samples", 4), ("steps", 40))
    weights = drawn(keys(4, 1201), x, EXACT, discretised(LEVELS), options)
    assert weights.shape == (4, 1201)
    for few in (weights[:1], weights):
        got = importance_weighted(few)
        assert within(np.exp(got), bin_probabilities()[2])
        mean_log.append(np.mean(got))
    assert mean_log[0] < mean_log[1] < np.log(bin_probabilities()[2])


MATRIX = np.asarray([[0.5, 0.4, 0.1], [-0.3, 0.2, 0.3], [0.2, 0.6, 0.4]])


def linear_eps(z, log_snr):
    """Its Jacobian is the same everywhere, and so is the error of a probe."""
    return z @ MATRIX


def test_samples_of_one_example_share_their_probes():
    """Then the estimate is off by the error of one ±1 probe, and vᵀMv takes four values."""
    x, batch = jnp.zeros((49, 3), jnp.int32), keys(4, 49)
    common = (("num_samples", 5), ("steps", 4))
    exact = log_likelihood(batch, x, linear_eps, discretised(LEVELS), common)
    noisy = log_likelihood(batch, x, linear_eps, discretised(LEVELS),
                           (*common, ("divergence", "hutchinson")))  # fmt: skip
    errors = np.unique(np.round(noisy - exact, 6))
    assert len(errors) == 4 and np.ptp(errors) > 0.1


def build(likelihood=None, network=None, top=TOP):
    network = ExactHead(table(PROBS, LEVELS), "v") if network is None else network
    return VDM(linear(top, BOTTOM), network, likelihood or discretised(LEVELS), "v")


@functools.partial(jax.jit, static_argnames=("model", "options"))
def of_model(model, params, key, x, cond=None, options=()):
    return model.log_likelihood(params, key, x, cond, **dict(options))


def test_model_takes_its_own_ends_and_likelihood():
    model, x = build(), np.arange(LEVELS)[:, None]
    params = {"schedule": {"ends": {}, "shape": {}}, "network": {"gain": jnp.ones(())}}
    options = (("num_samples", 3), ("steps", 30), ("dequantisation", "uniform"))
    batch, x = keys(0, LEVELS), jnp.asarray(x)
    got = of_model(model, params, batch, x, options=options)
    expected = log_likelihood(batch, x, EXACT, discretised(LEVELS), options)
    np.testing.assert_allclose(got, expected, rtol=1e-8)
    rows = jnp.asarray([6, 2, 2, 2, 2, 0, 1, 2])
    few = of_model(model, params, batch[rows], x[rows], options=options)
    np.testing.assert_allclose(few, got[rows], rtol=1e-10)


def test_one_key_gives_every_example_its_own(monkeypatch):
    def number_of_the_key(key, *_, **__):
        number = jax.random.uniform(key[0], (1, 1))
        return marginal.Draws(number, number, number)

    monkeypatch.setattr(marginal, "log_weights", number_of_the_key)
    params, x = {"schedule": {}, "network": {}}, np.full((LEVELS, 1), 3)
    key = jax.random.key(0)
    got, same = (build().log_weights(params, k, x) for k in (key, jax.random.split(key, LEVELS)))
    assert got.log_weights.shape == (1, LEVELS) and len(np.unique(got.log_weights)) == LEVELS
    np.testing.assert_array_equal(got.log_weights, same.log_weights)


def test_density_of_real_data():
    """Raw x = 7 + 2 y, y ~ N(0.4, 0.5²) per entry: exact but for σ_0, which blurs it."""
    network = ExactHead(gaussian_data((0.4, 0.4), 0.5), "v")
    model = build(gaussian(0.1, 7.0, 2.0), network, top=12.0)
    params = {"schedule": {"ends": {}, "shape": {}}, "network": {"gain": jnp.ones(())}}
    x = np.random.default_rng(0).normal(7.8, 1.0, (5, 2))
    got = of_model(model, params, jax.random.key(0), x)
    a, s = scales(12.0)
    law = stats.norm(7 + 2 * 0.4, 2 * np.hypot(0.5, s / a))
    np.testing.assert_allclose(got, law.logpdf(x).sum(1), atol=1e-4)


class Conditional(nn.Module):
    """Refuses a condition that is not one per example."""

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train):
        assert cond.shape == (z.shape[0],)
        return self.param("gain", nn.initializers.ones, ()) * jnp.tanh(z * cond[:, None])


def test_conditions_go_with_their_examples():
    model = build(network=Conditional())
    params = {"schedule": {"ends": {}, "shape": {}}, "network": {"gain": jnp.asarray(0.3)}}
    x, batch, cond = np.full((3, 2), 4), keys(0, 3), np.asarray([0.1, 2.0, -1.0])
    got = of_model(model, params, batch, x, cond, options=(("steps", 6),))
    for row in range(3):
        same = of_model(model, params, batch, x, np.full(3, cond[row]),
                        options=(("steps", 6),))  # fmt: skip
        np.testing.assert_allclose(got[row], same[row], rtol=1e-12)
    assert len(np.unique(np.round(got, 3))) == 3


@pytest.mark.usefixtures("unchecked")
def test_bad_input():
    model = build()
    params = {"schedule": {"ends": {}, "shape": {}}, "network": {"gain": jnp.ones(())}}
    x = np.full((3, 2), 4)

    def attempt(model=model, x=x, key=None, **options):
        key = jax.random.key(0) if key is None else key
        return model.log_likelihood(params, key, x, **options)

    for num_samples in (0, 1.5):
        with pytest.raises(ValueError, match="num_samples must be a whole number of at least 1"):
            attempt(num_samples=num_samples)
    with pytest.raises(ValueError, match=r"unknown dequantisation.*'truncated_normal'"):
        attempt(dequantisation="truncated")
    with pytest.raises(ValueError, match=r"unknown divergence.*'hutchinson'"):
        attempt(divergence="hutchins")
    with pytest.raises(ValueError, match=r"\(\) or \(3,\)"):
        attempt(key=keys(0, 4))
    with pytest.raises(TypeError, match="models integers"):
        attempt(x=x + 0.5)
    real = build(gaussian(0.1))
    with pytest.raises(ValueError, match="needs no draws, expected num_samples=1"):
        attempt(real, x + 0.5, num_samples=2)
    with pytest.raises(ValueError, match="real data needs no dequantisation"):
        attempt(real, x + 0.5, dequantisation="uniform")
