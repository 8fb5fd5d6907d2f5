"""The three terms against closed forms, mutual informations and exact arithmetic."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import (
    SKEWED,
    SKEWED_2D,
    arrays,
    exact_eps,
    expectation,
    gaussian_data,
    gaussian_diffusion,
    gaussian_mmse,
    interval,
    mixture_nodes,
    mutual_information,
    normal,
    scales,
)
from vdm import likelihoods, losses, schedules

ENDS = (5.0, -4.0)
WIDTH = 0.6
SCHEDULES = {
    "linear": schedules.linear(*ENDS),
    "cosine": schedules.cosine(*ENDS),
    "shifted": schedules.cosine(*ENDS, shift=2 * np.log(2)),
    "learned_linear": schedules.learned_linear(*ENDS),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
SHAPES = [(49, 3), (1, 2, 3), (7, 2, 3, 1), (5, 2, 2, 3, 2)]


def curve(schedule):
    params = schedule.init(jax.random.key(0))
    return lambda t: schedule.log_snr(params, t)


prior_kl = jax.jit(losses.prior_kl)
LINEAR = curve(SCHEDULES["linear"])


def exact_prior(x, log_snr):
    """½ (σ² + α² x² − 1 − log σ²) in 50 digits."""
    with decimal.localcontext(prec=50):
        snr, x = decimal.Decimal(log_snr).exp(), decimal.Decimal(x)
        return float((1 / (1 + snr) + snr / (1 + snr) * x * x - 1 + (1 + snr).ln()) / 2)


@pytest.mark.float32
@pytest.mark.parametrize("log_snr", [-13.3, -5.0, 0.0, 5.0, 13.3])
def test_prior_in_float32_against_exact_arithmetic(log_snr):
    log_snr = np.float32(log_snr)
    x = np.asarray([[-0.9], [0.35], [1.0], [2.5]], np.float32)
    expected = [exact_prior(float(v), float(log_snr)) for v in x[:, 0]]
    prior = prior_kl(x, log_snr)
    assert prior.dtype == jnp.float32
    np.testing.assert_allclose(prior, expected, rtol=3e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_prior_sums_over_every_dimension(shape):
    x, log_snr = arrays(0, shape), np.linspace(-6.0, 4.0, shape[0])
    a, s = (part.reshape(-1, *(1,) * (len(shape) - 1)) for part in scales(log_snr))
    expected = 0.5 * (s**2 + a**2 * x**2 - 1 - np.log(s**2)).reshape(shape[0], -1).sum(1)
    prior = prior_kl(x, log_snr)
    np.testing.assert_allclose(prior, expected, rtol=1e-10)


def test_cost_of_the_prior_for_8_bit_images():
    prior = losses.prior_kl(jnp.full((1, 3), 0.5), jnp.asarray(-5.0))
    np.testing.assert_allclose(losses.bits_per_dim(prior, 3), 0.00122, rtol=5e-3)


def test_bits_per_dim():
    nats = jnp.asarray([12 * np.log(2.0), 0.0])
    np.testing.assert_allclose(losses.bits_per_dim(nats, 6), [2.0, 0.0], rtol=1e-15)


def test_reconstruction_of_real_data_is_the_gaussian_cross_entropy():
    scale, log_snr = 0.3, 3.0
    x = np.asarray([[-0.7, 2.1, 0.0]])
    likelihood = likelihoods.gaussian(scale, 0.5, 2.0)

    def cost(x, eps):
        return losses.reconstruction(x, eps, jnp.asarray(log_snr), likelihood)

    noise, weights = normal(61)
    (nats,) = expectation(cost, x, (np.repeat(noise, 3, 1), weights))
    each = np.exp(-log_snr) / (2 * scale**2) + np.log(2.0 * scale) + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(nats, 3 * each, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_error_is_the_squared_distance_of_each_example(shape):
    x, eps, log_snr = arrays(0, shape), arrays(1, shape), np.linspace(-6.0, 4.0, shape[0])
    a, s, level = (v.reshape(-1, *(1,) * (len(shape) - 1)) for v in (*scales(log_snr), log_snr))

    def eps_fn(z, log_snr):
        return 0.3 * z + jnp.sin(log_snr.reshape(level.shape))

    error = jax.jit(losses.noise_error, static_argnums=3)(x, eps, log_snr, eps_fn)
    square = (eps - 0.3 * (a * x + s * eps) - np.sin(level)) ** 2
    np.testing.assert_allclose(error, square.reshape(shape[0], -1).sum(1), rtol=1e-12)


def integral(data, log_snr_fn, times=96, n=49):
    """E over the data of the T = ∞ diffusion term."""
    dim = len(data.means[0])
    x, x_weights = mixture_nodes(data, n)
    eps, eps_weights = normal(n, dim)
    pairs = np.indices((len(x), len(eps))).reshape(2, -1)
    weights = x_weights[pairs[0]] * eps_weights[pairs[1]]
    kept = weights > 1e-13
    x, eps, weights = x[pairs[0]][kept], eps[pairs[1]][kept], weights[kept]

    @jax.jit
    def at(t):
        loss = losses.diffusion_loss(
            jnp.asarray(x), jnp.full(len(x), t), jnp.asarray(eps), log_snr_fn, exact_eps(data)
        )
        return loss @ jnp.asarray(weights)

    nodes, time_weights = interval(times)
    return float(sum(w * at(t) for t, w in zip(nodes, time_weights, strict=True)))


@every_schedule
def test_gaussian_data_cost_the_same_under_every_schedule(schedule):
    data = gaussian_data([0.8], WIDTH)
    expected = gaussian_diffusion(WIDTH, *ENDS)
    np.testing.assert_allclose(integral(data, curve(schedule), n=41), expected, rtol=1e-9)


@every_schedule
def test_a_skewed_mixture_costs_its_information_under_every_schedule(schedule):
    high, low = (mutual_information(SKEWED, end, 2000) for end in ENDS)
    np.testing.assert_allclose(integral(SKEWED, curve(schedule), n=61), high - low, rtol=1e-7)


def test_a_skewed_mixture_of_vectors_costs_its_information():
    high, low = (mutual_information(SKEWED_2D, end) for end in (2.0, -3.0))
    got = integral(SKEWED_2D, curve(schedules.linear(2.0, -3.0)), times=10, n=19)
    np.testing.assert_allclose(got, high - low, rtol=1e-4)


def steps_term(data, x, num_steps, log_snr_fn=LINEAR):
    def loss(x, i, eps):
        return losses.diffusion_loss_steps(
            x, i, eps, log_snr_fn, exact_eps(data), num_steps=num_steps
        )

    rule = (np.arange(1, num_steps + 1), np.full(num_steps, 1 / num_steps))
    return expectation(loss, x, rule, normal(41, x.shape[1]))


@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
def test_steps_of_gaussian_data(num_steps):
    x, weights = mixture_nodes(gaussian_data([0.8], WIDTH), 41)
    grid = np.linspace(*ENDS, num_steps + 1)
    expected = 0.5 * np.expm1(grid[:-1] - grid[1:]) @ gaussian_mmse(WIDTH, grid[1:])
    got = weights @ steps_term(gaussian_data([0.8], WIDTH), x, num_steps)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("i", [1, 3, 5])
def test_each_step_is_the_divergence_of_its_two_posteriors(i):
    num_steps, x, eps_fn = 5, 0.9, exact_eps(SKEWED)
    cosine = curve(SCHEDULES["cosine"])

    def loss(x, eps):
        step = jnp.full(len(x), i)
        return losses.diffusion_loss_steps(x, step, eps, cosine, eps_fn, num_steps=num_steps)

    (got,) = expectation(loss, np.asarray([[x]]), normal(61))

    log_snr_t, log_snr_s = (float(cosine(jnp.asarray(k / num_steps))) for k in (i, i - 1))
    (a_t, s_t), (a_s, s_s) = scales(log_snr_t), scales(log_snr_s)
    var_ts = s_t**2 - (a_t / a_s) ** 2 * s_s**2
    eps, weights = normal(61)
    z = a_t * x + s_t * eps
    x_hat = (z - s_t * np.asarray(eps_fn(jnp.asarray(z), jnp.asarray(log_snr_t)))) / a_t
    # Both are N(·, v) with v = σ²_{t|s} σ_s²/σ_t², and means a_s σ²_{t|s}/σ_t² (x − x̂) apart.
    apart = a_s * var_ts / s_t**2 * (x - x_hat[:, 0])
    divergence = weights @ (apart**2 / (2 * var_ts * s_s**2 / s_t**2))
    np.testing.assert_allclose(got, num_steps * divergence, rtol=1e-9)


def test_cost_of_finitely_many_steps():
    """L_T − L_∞ → (Δλ/4T)(2 L_∞ + m(λ_min) − m(λ_max)), the next order being 1/T²."""
    limit = gaussian_diffusion(WIDTH, *ENDS)
    ends = gaussian_mmse(WIDTH, ENDS[1]) - gaussian_mmse(WIDTH, ENDS[0])
    law = (ENDS[0] - ENDS[1]) / 4 * (2 * limit + ends)
    x, weights = mixture_nodes(gaussian_data([0.8], WIDTH), 31)
    data = gaussian_data([0.8], WIDTH)
    off = [n * (weights @ steps_term(data, x, n) - limit) - law for n in (100, 200)]
    assert abs(off[1]) < 0.02 * law
    assert abs(off[0] / off[1] - 2) < 0.05


def test_steps_must_be_at_least_one():
    x = jnp.zeros((1, 1))
    with pytest.raises(ValueError, match="num_steps must be at least 1: got 0"):
        losses.diffusion_loss_steps(
            x, jnp.ones(1, int), x, LINEAR, lambda z, log_snr: z, num_steps=0
        )
