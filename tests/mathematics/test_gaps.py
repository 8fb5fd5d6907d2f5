"""Each gap of the bound against sums over all data and integrals over z."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import (
    arrays,
    entropy,
    exact_eps,
    expectation,
    gaussian_diffusion,
    gaussian_mmse,
    interval,
    keys,
    mixture_density,
    normal,
    scales,
    skewed_probs,
    table,
    within,
)
from vdm import gaps, losses, noise_levels
from vdm.likelihoods import discretised, gaussian

LEVELS, HIGH, LOW, ERROR = 8, 3.0, -0.5, 0.4
PROBS = skewed_probs((LEVELS,))
DATA = table(PROBS, LEVELS)
X_RAW = jnp.arange(LEVELS)[:, None]
X = jnp.asarray(DATA.means)
LIKELIHOOD = discretised(LEVELS)


def log_density(z, log_snr):
    """log q(z_λ) of the table, one pixel."""
    a, s = scales(jnp.broadcast_to(log_snr, (len(z),))[:, None])
    near = -0.5 * ((z - a * X[:, 0][None]) / s) ** 2 - jnp.log(s * jnp.sqrt(2 * jnp.pi))
    return jax.nn.logsumexp(near + jnp.log(PROBS)[None], axis=1)


def wrong_eps(z, log_snr):
    return exact_eps(DATA)(z, log_snr) + ERROR * jnp.cos(3 * z)


LAW = gaps.Law(exact_eps(DATA), log_density, lambda x: jnp.log(PROBS)[x[:, 0]])


def even(log_snr):
    """Levels of even density between the ends."""
    return noise_levels.NoiseLevels(log_snr, jnp.full_like(log_snr, HIGH - LOW))


@functools.cache
def by_quadrature():
    """The mean of every gap over data and noise, from the functions under test."""
    noise, (nodes, weights) = normal(141), interval(60, LOW, HIGH)
    prior = expectation(
        lambda x, eps: gaps.prior_gap(x, eps, jnp.asarray(LOW), log_density), X, noise
    )
    denoiser = expectation(
        lambda x, level, eps: gaps.denoiser_gap(x, even(level), eps, wrong_eps, exact_eps(DATA)),
        X,
        (nodes, weights / (HIGH - LOW)),
        noise,
    )
    decoder = expectation(
        lambda x, eps: gaps.decoder_gap(
            x, eps, jnp.asarray(HIGH), LIKELIHOOD, log_density, LAW.log_prob(x)
        ),
        X_RAW,
        noise,
    )
    return np.stack([prior, denoiser, decoder])


def test_the_bound_is_the_entropy_and_the_gaps():
    noise, (nodes, weights) = normal(141), interval(60, LOW, HIGH)
    reconstruction = expectation(
        lambda x, eps: losses.reconstruction(x, eps, jnp.asarray(HIGH), LIKELIHOOD), X_RAW, noise
    )
    diffusion = expectation(
        lambda x, level, eps: losses.diffusion_loss_at(x, even(level), eps, wrong_eps),
        X,
        (nodes, weights / (HIGH - LOW)),
        noise,
    )
    prior = np.asarray(losses.prior_kl(X, jnp.asarray(LOW)))
    negative_vlb = PROBS @ (prior + reconstruction + diffusion)
    means = by_quadrature() @ PROBS
    assert np.all(means > 0.01)
    np.testing.assert_allclose(negative_vlb, entropy(PROBS) + means.sum(), atol=1e-9)


def test_each_gap_is_its_integral_over_z():
    z = np.linspace(-9, 9, 4001)
    step = z[1] - z[0]
    marginal = mixture_density(DATA, z[:, None], LOW)
    standard = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    prior = step * marginal @ (np.log(np.maximum(marginal, 1e-300)) - standard)

    nodes, weights = interval(60, LOW, HIGH)
    apart = [mixture_density(DATA, z[:, None], n) @ (ERROR * np.cos(3 * z)) ** 2 for n in nodes]
    denoiser = 0.5 * step * weights @ np.asarray(apart)

    a, s = scales(HIGH)
    near = -0.5 * ((z[:, None] - a * np.asarray(DATA.means)[:, 0]) / s) ** 2
    model = near - np.logaddexp.reduce(near, 1, keepdims=True)
    posterior = near + np.log(PROBS)
    posterior -= np.logaddexp.reduce(posterior, 1, keepdims=True)
    divergence = np.sum(np.exp(posterior) * (posterior - model), 1)
    decoder = step * mixture_density(DATA, z[:, None], HIGH) @ divergence
    np.testing.assert_allclose(by_quadrature() @ PROBS, [prior, denoiser, decoder], rtol=1e-8)


@pytest.mark.parametrize("per_example", [False, True])
def test_one_draw_of_every_gap_is_unbiased(per_example):
    """For every x alone, in 5 standard errors."""

    @jax.jit
    @jax.vmap
    def draw(key):
        key_u, key = jax.random.split(key)
        levels = noise_levels.sigmoid_law(noise_levels.stratified(key_u, LEVELS), HIGH, LOW)
        key = jax.random.split(key, LEVELS) if per_example else key
        drawn = gaps.estimate(
            key, X_RAW, levels, wrong_eps, LAW, LIKELIHOOD, log_snr_max=HIGH, log_snr_min=LOW
        )
        return jnp.stack([*drawn, drawn.total])

    drawn = np.asarray(draw(keys(1, 4000)))
    assert within(drawn[:, :3], by_quadrature())
    assert within(drawn[:, 3], by_quadrature().sum(0))


def test_a_constant_error_costs_the_same_in_every_draw():
    """½ Δλ ‖δ‖², in any shape of data."""
    x, eps, delta = arrays(0, (5, 2, 3)), arrays(1, (5, 2, 3)), arrays(2, (1, 2, 3))
    levels = even(jnp.linspace(LOW, HIGH, 5))
    gap = gaps.denoiser_gap(
        jnp.asarray(x), levels, jnp.asarray(eps), lambda z, _: z + delta, lambda z, _: z
    )
    np.testing.assert_allclose(gap, 0.5 * (HIGH - LOW) * np.sum(delta**2), rtol=1e-9)


MEAN, STD, WIDTH, SCALE = 0.4, 1.7, 0.6, 0.3


def test_gaps_of_gaussian_data_and_decoder():
    """Raw data N(m + d c, (d w)²), encoded N(c, w²): KL between Gaussians, in two dimensions."""
    likelihood, centre, level = gaussian(SCALE, MEAN, STD), np.asarray([0.5, -0.2]), 1.3
    a, s = scales(level)

    def normal_logs(value, mean, width):
        logs = -0.5 * ((value - mean) / width) ** 2 - np.log(width * np.sqrt(2 * np.pi))
        return jnp.sum(logs, axis=-1)

    def density(z, log_snr):
        a, s = scales(log_snr)
        return normal_logs(z, a * centre[None], jnp.sqrt(a**2 * WIDTH**2 + s**2))

    def both(unit, eps):
        encoded = centre[None] + WIDTH * unit
        raw = MEAN + STD * encoded
        log_prob = normal_logs(raw, MEAN + STD * centre[None], STD * WIDTH)
        decoder = gaps.decoder_gap(raw, eps, jnp.asarray(level), likelihood, density, log_prob)
        return jnp.stack([decoder, gaps.prior_gap(encoded, eps, jnp.asarray(level), density)], 1)

    # Both are quadratic in x and ε, so a rule that is exact for quadratics is enough.
    root = np.sqrt(3.0)
    axis, weight = np.asarray([-root, 0.0, root]), np.asarray([1, 4, 1]) / 6
    index = np.indices((3,) * 4).reshape(4, -1)
    weights = np.prod(weight[index], 0)
    values = both(jnp.asarray(axis[index[:2]].T), jnp.asarray(axis[index[2:]].T))
    decoder, prior = weights @ np.asarray(values)

    total = a**2 * WIDTH**2 + s**2
    exact = 0.5 * (2 * (total - 1 - np.log(total)) + a**2 * np.sum(centre**2))
    np.testing.assert_allclose(prior, exact, rtol=1e-10)
    # q(x|z_0) has variance v and a mean that is off z_0/α_0, of variance E(x − z_0/α_0)² − v.
    v, off = WIDTH**2 * s**2 / total, s**2 / a**2
    exact = 2 * 0.5 * (off / SCALE**2 - 1 - np.log(v / SCALE**2))
    np.testing.assert_allclose(decoder, exact, rtol=1e-10)


# --- finite T ----------------------------------------------------------------------------

STEPS = (10, 30, 100, 300, 1000, 3000, 10_000)


@pytest.mark.parametrize(("high", "low", "width"), [(6.0, -5.0, 0.5), (2.0, -9.0, 1.6)])
def test_the_steps_law_leaves_the_second_order(high, low, width):
    """The exact L_T of Gaussian data, ½ Σ (SNR_s/SNR_t − 1) mmse(λ_t), over T = 10 to 10,000."""
    bound_inf = gaussian_diffusion(width, high, low)
    ends = gaussian_mmse(width, low), gaussian_mmse(width, high)
    excess = []
    for n in STEPS:
        log_snr = high + (low - high) * np.arange(1, n + 1) / n
        weight = np.expm1((high - low) / n)
        excess.append(0.5 * weight * np.sum(gaussian_mmse(width, log_snr)) - bound_inf)
    predicted = np.asarray([gaps.steps_law(high, low, bound_inf, *ends, n) for n in STEPS])
    remainder = np.abs(np.asarray(excess) - predicted)
    order = -np.polyfit(np.log(STEPS[2:]), np.log(remainder[2:]), 1)[0]
    assert abs(order - 2) < 0.02
    np.testing.assert_allclose(predicted[2:], excess[2:], rtol=0.1)
    np.testing.assert_allclose(predicted[-1], excess[-1], rtol=1e-3)


def test_the_steps_law_of_every_example():
    """Arrays of bounds and errors, one number of steps."""
    bound, low, high = arrays(3, (3, 4))
    law = gaps.steps_law(5.0, -3.0, *map(jnp.asarray, (bound, low, high)), 20)
    np.testing.assert_allclose(law, 8 / 80 * (2 * bound + low - high), rtol=1e-12)


# --- what is refused ---------------------------------------------------------------------


def test_refused_numbers():
    with pytest.raises(ValueError, match="num_steps must be at least 1: got 0"):
        gaps.steps_law(5.0, -3.0, 1.0, 0.1, 1.0, 0)
    levels = even(jnp.zeros(LEVELS))
    with pytest.raises(ValueError, match=r"must exceed log_snr_min: got -3\.0 and 5\.0"):
        gaps.estimate(
            jax.random.key(0),
            X_RAW,
            levels,
            wrong_eps,
            LAW,
            LIKELIHOOD,
            log_snr_max=-3.0,
            log_snr_min=5.0,
        )
