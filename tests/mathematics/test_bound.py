"""The bound is a bound: over every possible datum exp(VLB) sums to at most one.

Data on a few levels can be enumerated and each expectation done by quadrature, so there
is no Monte Carlo error. With the exact denoiser of a table P and wide ends the sum is
one, however P looks, and every term that is dropped or shrunk shows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import (
    ExactHead,
    entropy,
    exact_eps,
    expectation,
    grid_of_levels,
    interval,
    keys,
    mixture_density,
    normal,
    scales,
    skewed_probs,
    table,
    within,
)
from vdm import VDM, losses
from vdm.likelihoods import discretised
from vdm.schedules import cosine, linear

LEVELS = 8
PROBS = skewed_probs((LEVELS,))
HEADS = ("eps", "x", "v", "score")


def build(schedule, probs=PROBS, head="eps", error=0.0):
    levels = probs.shape[0]
    model = VDM(schedule, ExactHead(table(probs, levels), head, error), discretised(levels), head)
    x = jnp.asarray(grid_of_levels(probs.ndim, levels))
    return model, model.init(jax.random.key(0), x), x


@functools.cache
def terms(schedule, head="eps", error=0.0, num_steps=None, pixels=1):
    """(prior, reconstruction, diffusion) for every possible datum, by quadrature."""
    probs = PROBS if pixels == 1 else skewed_probs((LEVELS,) * pixels, seed=1)
    model, params, x = build(schedule, probs, head, error)
    log_snr_fn, eps_fn = model.log_snr(params), model.denoiser(params)
    log_snr_0, log_snr_1 = log_snr_fn(jnp.asarray(0.0)), log_snr_fn(jnp.asarray(1.0))
    noise = normal(141 if (num_steps or 0) < 1000 else 57) if pixels == 1 else normal(23, 2, 5.5)

    def reconstruction(x, eps):
        return losses.reconstruction(x, eps, log_snr_0, model.likelihood)

    if num_steps is None:
        times = interval(72 if pixels == 1 else 20)

        def diffusion(x, t, eps):
            return losses.diffusion_loss(x, t, eps, log_snr_fn, eps_fn)

    else:
        times = np.arange(1, num_steps + 1), np.full(num_steps, 1 / num_steps)

        def diffusion(x, i, eps):
            return losses.diffusion_loss_steps(x, i, eps, log_snr_fn, eps_fn, num_steps=num_steps)

    encoded = model.likelihood.encode(x)
    return (
        np.asarray(losses.prior_kl(encoded, log_snr_1)),
        expectation(reconstruction, x, noise),
        expectation(diffusion, encoded, times, noise),
    )


def total(*nats):
    return np.exp(-sum(nats)).sum()


@pytest.mark.parametrize("head", HEADS)
def test_exact_denoiser_meets_the_data_s_own_probabilities(head):
    nats = terms(linear(9.0, -9.0), head)
    np.testing.assert_allclose(np.exp(-sum(nats)), PROBS, rtol=5e-4)
    assert 1 - 1e-4 < total(*nats) <= 1 + 1e-9


def test_two_pixels_sum_to_one():
    assert 0.998 < total(*terms(linear(7.5, -7.5), pixels=2)) <= 1 + 1e-6


@pytest.mark.parametrize("head", HEADS)
def test_a_wrong_denoiser_stays_below_one_and_costs_the_same_in_every_head(head):
    nats = terms(cosine(4.0, -4.0), head, error=0.3)
    assert total(*nats) < 0.9
    np.testing.assert_allclose(nats, terms(cosine(4.0, -4.0), "eps", error=0.3), rtol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 10])
@pytest.mark.parametrize("error", [0.0, 0.3])
def test_finite_steps_stay_below_one_for_any_network(num_steps, error):
    assert total(*terms(linear(4.0, -4.0), error=error, num_steps=num_steps)) < 1


def test_more_steps_close_the_gap_from_below():
    sums = [total(*terms(linear(9.0, -9.0), num_steps=n)) for n in (10, 100, 1000)]
    assert 0 < sums[0] < sums[1] < sums[2] < 1
    assert sums[1] > 0.7 and sums[2] > 0.95


def test_a_dropped_decoder_is_no_bound():
    prior, reconstruction, diffusion = terms(linear(3.0, -9.0))
    assert total(prior, reconstruction, diffusion) <= 1
    assert total(prior, diffusion) > 1.2


def test_a_dropped_prior_is_no_bound():
    prior, reconstruction, diffusion = terms(linear(9.0, 0.0))
    assert total(prior, reconstruction, diffusion) <= 1
    assert total(reconstruction, diffusion) > 1.1


def test_a_halved_diffusion_term_is_no_bound():
    """All of −log P(x) lies in the diffusion term here, so half of it sums to Σ √P."""
    prior, reconstruction, diffusion = terms(linear(9.0, -9.0))
    np.testing.assert_allclose(
        total(prior, reconstruction, diffusion / 2), np.sqrt(PROBS).sum(), rtol=1e-3
    )
    assert np.sqrt(PROBS).sum() > 2


def test_the_bound_is_the_entropy_and_three_gaps():
    """E[−VLB] = H + KL(q(z_1)‖N) + ½∫E‖ε̂ − ε*‖² dλ + E KL(q(x|z_0)‖p(x|z_0)), exactly."""
    high, low, error = 3.0, -0.5, 0.4
    negative_vlb = PROBS @ sum(terms(linear(high, low), error=error))

    data = table(PROBS, LEVELS)
    z = np.linspace(-9, 9, 4001)
    step = z[1] - z[0]
    marginal = mixture_density(data, z[:, None], low)
    standard = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    prior_gap = step * marginal @ (np.log(np.maximum(marginal, 1e-300)) - standard)

    nodes, weights = interval(72, low, high)
    wrong = [
        step * mixture_density(data, z[:, None], level) @ (error * np.cos(3 * z)) ** 2
        for level in nodes
    ]
    denoiser_gap = 0.5 * weights @ np.asarray(wrong)

    a, s = scales(high)
    near = -0.5 * ((z[:, None] - a * np.asarray(data.means)[:, 0]) / s) ** 2
    likelihood = near - np.logaddexp.reduce(near, 1, keepdims=True)
    posterior = near + np.log(PROBS)
    posterior = posterior - np.logaddexp.reduce(posterior, 1, keepdims=True)
    divergence = np.sum(np.exp(posterior) * (posterior - likelihood), 1)
    decoder_gap = step * mixture_density(data, z[:, None], high) @ divergence

    gaps = np.asarray([prior_gap, denoiser_gap, decoder_gap])
    assert np.all(gaps > 0.01)
    np.testing.assert_allclose(negative_vlb, entropy(PROBS) + gaps.sum(), atol=1e-9)


@pytest.mark.parametrize("num_steps", [None, 3])
@pytest.mark.parametrize("per_example", [False, True])
def test_vlb_estimates_each_term_without_bias(num_steps, per_example):
    schedule = cosine(4.0, -4.0)
    model, params, x = build(schedule, error=0.3)
    expected = terms(schedule, error=0.3, num_steps=num_steps)

    @jax.jit
    @jax.vmap
    def estimate(key):
        key = jax.random.split(key, LEVELS) if per_example else key
        return jnp.stack(model.vlb(params, key, x, num_steps=num_steps))

    draws = np.asarray(estimate(keys(num_steps or 0, 1500)))
    np.testing.assert_allclose(draws[:, 0], np.broadcast_to(expected[0], draws[:, 0].shape))
    assert within(draws[:, 1], expected[1]) and within(draws[:, 2], expected[2])
    assert within(draws.sum((1, 2)), sum(expected).sum())


def test_the_exact_denoiser_is_the_best_one():
    """A check of the oracle itself: E[ε|z] by summing over the table."""
    z, log_snr = np.linspace(-2, 2, 7)[:, None], 1.3
    a, s = scales(log_snr)
    values = (2 * np.arange(LEVELS) + 1) / LEVELS - 1
    joint = PROBS * np.exp(-0.5 * ((z - a * values) / s) ** 2)
    expected = np.sum(joint * (z - a * values) / s, 1) / joint.sum(1)
    got = exact_eps(table(PROBS, LEVELS))(jnp.asarray(z), jnp.asarray(log_snr))
    np.testing.assert_allclose(got[:, 0], expected, rtol=1e-10)
