"""What holds for every sampler: exact denoisers lead to the law of the data, at the right rate."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from oracles import (
    SKEWED_2D,
    arrays,
    correlated_eps,
    energy_p_value,
    exact_eps,
    mixture_draws,
    mixture_moments,
    scales,
    within,
)
from vdm import samplers
from vdm.diffusion import convert

MEAN = np.asarray([0.7, -0.3, 1.1])
COVARIANCE = np.asarray([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.8]])
EPS = {"normal": correlated_eps(MEAN, COVARIANCE), "mixture": exact_eps(SKEWED_2D)}
DIM = {"normal": 3, "mixture": 2}
ALL = [
    samplers.ancestral(),
    samplers.ddim(),
    samplers.ddim(0.6),
    samplers.heun(),
    samplers.heun(0.1),
    samplers.dpmpp_2m(),
]


def clean_end(data, log_snr, n):
    """Exact draws of z at λ, and their mean and covariance."""
    a, s = scales(log_snr)
    rng = np.random.default_rng(7)
    if data == "mixture":
        x, (mean, cov) = mixture_draws(SKEWED_2D, n), mixture_moments(SKEWED_2D)
    else:
        x, mean, cov = rng.multivariate_normal(MEAN, COVARIANCE, n), MEAN, COVARIANCE
    z = a * x + s * rng.normal(size=x.shape)
    return z, a * mean, a**2 * cov + s**2 * np.eye(len(mean))


def follows(z, data, log_snr):
    """Means and covariances within 5 standard errors, and the energy test at level 0.002."""
    exact, mean, cov = clean_end(data, log_snr, 1001)
    centred = z - mean
    assert within(z, mean)
    assert within(centred[:, :, None] * centred[:, None, :], cov)
    assert energy_p_value(z[:1001], exact) > 0.002


def test_the_energy_test_tells_samples_a_little_too_wide():
    exact, mean, _ = clean_end("mixture", 5.0, 2002)
    assert energy_p_value(exact[:1001], exact[1001:]) > 0.002
    assert energy_p_value(mean + 1.25 * (exact[:1001] - mean), exact[1001:]) <= 0.002


@pytest.mark.parametrize("data", ["normal", "mixture"])
@pytest.mark.parametrize("sampler", ALL, ids=str)
def test_samples_follow_the_data(sampler, data):
    """The noisy end is where α² is 10⁻⁶: what is left of the data there is not seen."""
    one_call = isinstance(sampler, samplers.Ancestral | samplers.DDIM)
    grid = samplers.grids.uniform(5.0, -14.0, 1000 if one_call else 100)
    shape = (3001, DIM[data])
    draw = jax.jit(lambda key: samplers.sample(key, EPS[data], grid, shape, sampler=sampler))
    follows(np.asarray(draw(jax.random.key(11))), data, 5.0)


@pytest.mark.parametrize("sampler", [samplers.ancestral(), samplers.heun()], ids=str)
def test_samples_that_start_part_of_the_way_follow_the_data(sampler):
    start, _, _ = clean_end("mixture", -1.0, 3001)
    grid = samplers.grids.uniform(5.0, -1.0, 300)
    draw = jax.jit(
        lambda key, z: samplers.sample(key, EPS["mixture"], grid, z.shape, sampler=sampler, start=z)
    )
    z = np.asarray(draw(jax.random.key(12), jnp.asarray(start)))
    # Not the start's own x: exact draws of other data.
    assert energy_p_value(z[:1001], clean_end("mixture", 5.0, 4002)[0][3001:]) > 0.002
    follows(z, "mixture", 5.0)


def flow(data, z, log_snr_t, log_snr_s):
    """The probability-flow ODE dz/dλ = ½σ(σz − ε̂) from λ_t to λ_s, by scipy."""
    eps_fn = jax.jit(EPS[data])

    def rate(log_snr, flat):
        now = flat.reshape(z.shape)
        s = scales(float(log_snr))[1]
        eps = eps_fn(jnp.asarray(now), jnp.asarray(log_snr))
        return (0.5 * s * (s * now - np.asarray(eps))).ravel()

    ends = (log_snr_t, log_snr_s)
    solution = integrate.solve_ivp(rate, ends, z.ravel(), "DOP853", rtol=1e-10, atol=1e-11)
    return solution.y[:, -1].reshape(z.shape)


def test_the_flow_of_normal_data():
    """A check of the reference: along each eigenvector (z − α m)/√(α² c + σ²) stays as it is."""
    z = arrays(0, (5, 3))
    variance, axes = np.linalg.eigh(COVARIANCE)
    (a_t, s_t), (a_s, s_s) = scales(-3.0), scales(4.0)
    growth = np.sqrt((a_s**2 * variance + s_s**2) / (a_t**2 * variance + s_t**2))
    expected = a_s * MEAN + (growth * ((z - a_t * MEAN) @ axes)) @ axes.T
    np.testing.assert_allclose(flow("normal", z, -3.0, 4.0), expected, rtol=1e-8)


def grid_of(kind, num_steps):
    """From λ = −3 to 4 in even steps, or in steps whose lengths alternate as 1 to 3."""
    lengths = np.tile([1.0, 1.0] if kind == "even" else [1.0, 3.0], num_steps // 2)
    return -3.0 + 7.0 * np.concatenate([[0.0], np.cumsum(lengths) / lengths.sum()])


@functools.cache
def reference(data):
    z = arrays(0, (5, DIM[data]))
    return z, flow(data, z, -3.0, 4.0)


@pytest.mark.parametrize("data", ["normal", "mixture"])
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(samplers.ddim(), 1), (samplers.heun(), 2), (samplers.dpmpp_2m(), 2)],
    ids=str,
)
def test_order_of_convergence(sampler, order, data):
    """The error of one noise's z_0 falls as num_steps^−order, on even and uneven grids."""
    z, exact = reference(data)
    step = jax.jit(functools.partial(sampler.step, EPS[data]))
    counts = [40, 80, 160, 320]
    for kind in ("even", "uneven"):
        errors = []
        for num_steps in counts:
            now = jnp.asarray(z)
            carry = sampler.init(now)
            for t, s in itertools.pairwise(grid_of(kind, num_steps)):
                now, carry = step(now, carry, jnp.zeros_like(now), jnp.asarray(t), jnp.asarray(s))
            errors.append(np.sqrt(np.mean((np.asarray(now) - exact) ** 2)))
        slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
        assert abs(-slope - order) < 0.15, (kind, slope, errors)


@pytest.mark.parametrize(("log_snr_t", "log_snr_s"), [(-5.0, -4.0), (-1.0, 0.5), (2.0, 13.3)])
@pytest.mark.parametrize("sampler", ALL, ids=str)
def test_a_step_with_known_data_lands_on_the_process(sampler, log_snr_t, log_snr_s):
    """From z_t = α_t x + σ_t ε to mean α_s x and standard deviation σ_s, however it is shared."""
    x = jnp.asarray([[0.9, -0.4]])
    (a_t, s_t), (a_s, s_s) = scales(log_snr_t), scales(log_snr_s)

    @jax.jit
    def step(z_t, noise):
        return sampler.step(
            lambda z, log_snr: convert(x, z, log_snr, source="x", target="eps"),
            z_t,
            sampler.init(z_t),
            noise,
            jnp.asarray(log_snr_t),
            jnp.asarray(log_snr_s),
        )[0]

    zero, one = jnp.zeros((1, 2)), jnp.ones((1, 2))
    centre = step(a_t * x, zero)
    spread = np.hypot(step(a_t * x + s_t, zero) - centre, step(a_t * x, one) - centre)
    np.testing.assert_allclose(centre, a_s * x, rtol=1e-10)
    np.testing.assert_allclose(spread, s_s, rtol=1e-10)
