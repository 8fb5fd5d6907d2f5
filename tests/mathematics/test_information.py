"""The error's profile and its integrals, against data whose information is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import (
    SKEWED,
    SKEWED_2D,
    Mixture,
    arrays,
    exact_eps,
    gaussian_data,
    gaussian_mmse,
    keys,
    mixture_density,
    mixture_nodes,
    mutual_information,
    normal,
    scales,
    skewed_probs,
    table,
    within,
)
from vdm import information

MEAN, WIDTH = (0.7, -0.3), 0.6
LEVELS = 8
PROBS = skewed_probs((LEVELS,))


def errors_of(data, x, log_snrs, nodes=141):
    """E‖ε − E[ε|z]‖² for every level and x, [n, b], by quadrature over ε."""
    noise, weights = normal(nodes, x.shape[1])
    index = np.indices((len(log_snrs), len(x), len(noise))).reshape(3, -1)
    a, s = (scale[index[0]][:, None] for scale in scales(log_snrs))
    z = a * x[index[1]] + s * noise[index[2]]
    gap = noise[index[2]] - exact_eps(data)(z, log_snrs[index[0]])
    return np.sum(gap**2, 1).reshape(len(log_snrs), len(x), -1) @ weights


def gaussian_errors(x, log_snrs):
    """The same for Gaussian data, from ε − ε* = (α² s² ε − α σ (x − m))/(α² s² + σ²)."""
    a, s = (scale[:, None] for scale in scales(log_snrs))
    var = a**2 * WIDTH**2 + s**2
    far = np.sum((x - np.asarray(MEAN)) ** 2, 1)
    return 2 * (a**2 * WIDTH**2 / var) ** 2 + (a * s / var) ** 2 * far


def curve(log_snrs, errors):
    return jnp.asarray(log_snrs), jnp.asarray(errors)


# --- the profile -------------------------------------------------------------------------


@pytest.mark.parametrize(("per_example", "num_draws"), [(False, 1), (True, 3)])
def test_profile_estimates_every_error_without_bias(per_example, num_draws):
    x, log_snrs = arrays(0, (3, 2)), np.asarray([-3.0, 0.5, 2.0, 6.0])
    eps_fn = exact_eps(gaussian_data(MEAN, WIDTH))

    @jax.jit
    @jax.vmap
    def estimate(key):
        key = jax.random.split(key, 3) if per_example else key
        return information.profile(
            key, jnp.asarray(x), jnp.asarray(log_snrs), eps_fn, num_draws=num_draws
        ).values

    assert within(estimate(keys(0, 3000)), gaussian_errors(x, log_snrs))


def test_mean_and_standard_error_are_those_over_examples():
    values = arrays(1, (4, 7))
    got = information.Curve(*curve(np.arange(4.0), values))
    np.testing.assert_allclose(got.mean, values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(got.standard_error, values.std(1, ddof=1) / 7**0.5, rtol=1e-12)


def test_draws_are_averaged_and_independent():
    """With ε̂ = 0 the error is χ² of D degrees: mean D, variance 2 D over the draws."""
    x, log_snrs = jnp.zeros((4001, 3)), jnp.asarray([-1.0, 2.0])
    profile = jax.jit(
        lambda key: information.profile(
            key, x, log_snrs, lambda z, log_snr: jnp.zeros_like(z), num_draws=4
        )
    )
    first, second = np.asarray(profile(jax.random.key(0)).values) - 3.0
    assert within(first, 0.0) and within(second, 0.0)
    assert within(first**2, 6 / 4) and within(first * second, 0.0)


def test_errors_follow_their_own_keys():
    x, log_snrs = jnp.asarray(arrays(2, (5, 2))), jnp.asarray([-1.0, 2.0])
    batch, eps_fn = keys(3, 5), exact_eps(SKEWED_2D)
    values = information.profile(batch, x, log_snrs, eps_fn).values
    some = jnp.asarray([3, 0])
    alone = information.profile(batch[some], x[some], log_snrs, eps_fn).values
    np.testing.assert_array_equal(values[:, some], alone)


def test_error_in_x():
    """E(x − x*)² = 1/(1/s² + SNR) for Gaussian data."""
    log_snrs = np.linspace(-5.0, 9.0, 8)
    got = information.mmse_x(*curve(log_snrs, np.tile(gaussian_mmse(WIDTH, log_snrs), (3, 1)).T))
    np.testing.assert_allclose(got.mean, 1 / (WIDTH**-2 + np.exp(log_snrs)), rtol=1e-12)


@pytest.mark.float32
def test_profile_stays_float32():
    x = jnp.ones((2, 1))
    got = information.profile(jax.random.key(0), x, jnp.asarray([-1.0, 1.0]), lambda z, _: z)
    assert got.values.dtype == got.mean.dtype == jnp.float32


# --- mutual information ------------------------------------------------------------------


def test_information_of_gaussian_data_to_second_order():
    """I(x; z) = ½ log(1 + s² SNR); the trapezoid rule's error falls as the spacing squared."""

    def apart(n):
        log_snrs = np.linspace(-4.0, 5.0, n)
        errors = np.tile(gaussian_mmse(WIDTH, log_snrs), (2, 1)).T
        got = information.mutual_information(*curve(log_snrs, errors))
        truth = 0.5 * np.log1p(WIDTH**2 * np.exp(log_snrs))
        return np.abs(got.mean - (truth - truth[0])).max()

    worst = [apart(n) for n in (31, 61, 121)]
    orders = np.log2(np.divide(worst[:-1], worst[1:]))
    np.testing.assert_allclose(orders, 2.0, atol=0.02)
    assert worst[-1] < 2e-4


@pytest.mark.parametrize("data", [SKEWED, table(PROBS, LEVELS)], ids=["mixture", "table"])
def test_information_of_a_mixture_along_an_uneven_grid(data):
    x, weights = mixture_nodes(data, 61) if data is SKEWED else (np.asarray(data.means), PROBS)
    log_snrs = np.concatenate([np.linspace(-4.0, 0.0, 60), np.linspace(0.02, 3.0, 90)])
    got = information.mutual_information(*curve(log_snrs, errors_of(data, x, log_snrs, 61)))
    truth = [mutual_information(data, log_snrs[n]) for n in (0, 40, 80, 149)]
    running = np.asarray(got.values) @ weights
    np.testing.assert_allclose(running[[0, 40, 80, 149]], truth - truth[0], atol=2e-4)


def test_information_is_estimated_with_its_error():
    """Estimates of independent data sets scatter as their standard errors say."""
    log_snrs, size = jnp.linspace(-4.0, 5.0, 46), 200
    weights, means, widths = (jnp.asarray(field) for field in SKEWED_2D)

    @jax.jit
    def estimate(key):
        key_k, key_x, key_eps = jax.random.split(key, 3)
        k = jax.random.categorical(key_k, jnp.log(weights), shape=(size,))
        x = means[k] + widths[k][:, None] * jax.random.normal(key_x, (size, 2))
        errors = information.profile(key_eps, x, log_snrs, exact_eps(SKEWED_2D))
        got = information.mutual_information(*errors)
        return got.mean[-1], got.standard_error[-1]

    estimates, reported = np.asarray(jax.lax.map(estimate, keys(4, 200)))
    truth = mutual_information(SKEWED_2D, 5.0) - mutual_information(SKEWED_2D, -4.0)
    assert within(estimates, truth)
    # The sample variance of 200 normal numbers has a relative standard error of √(2/200).
    ratio = estimates.var(ddof=1) / np.mean(reported**2)
    assert abs(ratio - 1) < 5 * np.sqrt(2 / 200)


# --- log-likelihoods ---------------------------------------------------------------------


def log_gaussian(x):
    far = np.sum((x - np.asarray(MEAN)) ** 2, 1)
    return -0.5 * far / WIDTH**2 - np.log(2 * np.pi * WIDTH**2)


@pytest.mark.parametrize("variances", [(1.0, 1.0), (0.2, 3.0), (WIDTH**2, WIDTH**2)])
def test_density_of_every_gaussian_example(variances):
    x, log_snrs = arrays(5, (7, 2)), np.linspace(-25.0, 25.0, 501)
    got = information.pointwise_density(
        *curve(log_snrs, gaussian_errors(x, log_snrs)), jnp.asarray(variances)
    )
    np.testing.assert_allclose(got.nats, -log_gaussian(x), atol=1e-7)


def test_tails_of_a_density_leave_the_second_order():
    """What the tails do not say falls by e² where both ends move out by one."""
    x, variances = arrays(6, (5, 2)), np.asarray([0.2, 3.0])

    def left(end):
        log_snrs = np.linspace(-end, end, 4001)
        got = information.pointwise_density(
            *curve(log_snrs, gaussian_errors(x, log_snrs)), jnp.asarray(variances)
        )
        omitted = -log_gaussian(x) - got.nats
        low, high = np.exp(-end), np.exp(-end)
        far = x - np.asarray(MEAN)
        below = 0.5 * low * (np.sum(far**2, 1) - variances.sum())
        curvature = -4 / WIDTH**2 + np.sum(far**2, 1) / WIDTH**4
        above = 0.5 * high * (np.sum(1 / variances) + curvature)
        np.testing.assert_allclose(got.below, below, atol=20 * low**2)
        np.testing.assert_allclose(got.above, above, atol=200 * high**2)
        return np.abs(omitted), np.abs(-log_gaussian(x) - got.total)

    (omitted, near), (_, far) = left(6.0), left(7.0)
    assert np.all(near < 0.2 * omitted)
    np.testing.assert_allclose(np.log(near / far), 2.0, atol=0.1)


def test_density_of_every_example_of_a_skewed_mixture():
    """Per x, with a reference that is far off; tails as their formulas say, by autodiff."""
    x, log_snrs = np.asarray([[-1.2], [-0.5], [0.4], [1.5], [2.6]]), np.linspace(-9.0, 9.0, 361)
    errors = errors_of(SKEWED, x, log_snrs)
    got = information.pointwise_density(*curve(log_snrs, errors), jnp.asarray([0.3]))
    exact = -np.log(mixture_density(SKEWED, x, 80.0))
    np.testing.assert_allclose(got.nats, exact, atol=1e-2)
    np.testing.assert_allclose(got.total, exact, atol=2e-5)

    weights, means, widths = (np.asarray(field) for field in SKEWED)

    def log_density(point):
        gap = (point - means[:, 0]) / widths
        return jnp.log(jnp.sum(weights * jnp.exp(-0.5 * gap**2) / widths))

    slope, bend = jax.grad(log_density), jax.grad(jax.grad(log_density))
    above = [1 / 0.3 + 2 * bend(v) + slope(v) ** 2 for v in x[:, 0]]
    np.testing.assert_allclose(got.above, 0.5 * np.exp(-9.0) * np.asarray(above), rtol=0.05)
    mean, variance = weights @ means[:, 0], 0.3
    below = 0.5 * np.exp(-9.0) * ((x[:, 0] - mean) ** 2 - variance)
    np.testing.assert_allclose(got.below, below, rtol=0.01, atol=1e-6)


def omitted(data, log_snr):
    """KL(q(z|x) ‖ q(z)) and E[−log q(x|z) | x] for every x of a table, by quadrature over ε."""
    means, probs = np.asarray(data.means), np.asarray(data.weights)
    noise, weights = normal(161, means.shape[1])
    a, s = scales(float(log_snr))
    z = (a * means[:, None] + s * noise).reshape(-1, means.shape[1])
    square = np.sum((z[:, None] - a * means) ** 2, -1) / s**2
    log_joint = np.log(probs) - 0.5 * square
    log_marginal = np.logaddexp.reduce(log_joint, axis=1)
    own = np.repeat(np.arange(len(means)), len(noise))
    surprise = log_marginal - log_joint[np.arange(len(own)), own]
    surprise = surprise.reshape(len(means), -1) @ weights
    return -np.log(probs) - surprise, surprise


def test_probability_of_every_example_of_a_table():
    """Between any ends ½∫ is −log P(x) less the two tails, exactly; the tails as stated."""
    data = table(PROBS, LEVELS)
    x, log_snrs = np.asarray(data.means), np.linspace(-7.0, 6.0, 1301)
    got = information.pointwise_discrete(
        *curve(log_snrs, errors_of(data, x, log_snrs)), levels=LEVELS
    )
    below, above = omitted(data, -7.0)[0], omitted(data, 6.0)[1]
    # The spacing squared over 12, 8e-6, times the slope at the top.
    np.testing.assert_allclose(got.nats, -np.log(PROBS) - below - above, atol=8e-6)
    np.testing.assert_allclose(got.below, below, rtol=5e-3)
    far = (x[:, 0] - PROBS @ x[:, 0]) ** 2
    np.testing.assert_allclose(got.below, 0.5 * np.exp(-7.0) * far, rtol=5e-3)
    assert np.all(above > 0)
    np.testing.assert_allclose(got.above, above, rtol=0.3)
    assert np.all(got.above > above)


def test_probabilities_over_wide_ends():
    data = table(PROBS, LEVELS)
    x, log_snrs = np.asarray(data.means), np.linspace(-18.0, 9.0, 541)
    errors = errors_of(data, x, log_snrs)
    got = information.pointwise_discrete(*curve(log_snrs, errors), levels=LEVELS)
    np.testing.assert_allclose(got.nats, -np.log(PROBS), atol=1e-7)
    np.testing.assert_allclose(got.total, -np.log(PROBS), atol=1e-7)


@pytest.mark.parametrize("log_snr", [3.0, 5.0, 6.5])
@pytest.mark.parametrize("seed", [0, 1, None])
def test_the_tail_is_bounded_for_every_law(log_snr, seed):
    shape = (4, 4) if seed == 1 else (LEVELS,)
    probs = np.full(shape, 1 / np.prod(shape)) if seed is None else skewed_probs(shape, seed)
    data = table(probs, shape[0])
    mean = probs.ravel() @ omitted(data, log_snr)[1]
    bound = information.tail_bound(len(shape), log_snr, levels=shape[0])
    assert 0 < mean < bound
    # For even probabilities, the hardest case, the exponent is the true one.
    assert seed is not None or bound < 6 * mean


def test_tail_bound_by_hand():
    """Two levels, one apart: a single term on either side."""
    bound = information.tail_bound(5, jnp.asarray(2.0), levels=2)
    np.testing.assert_allclose(bound, 10 * np.exp(-np.exp(2.0) / 8), rtol=1e-12)


# --- what is refused ---------------------------------------------------------------------


def attempt(grid=(-1.0, 1.0), **kwargs):
    return information.profile(
        jax.random.key(0), jnp.ones((3, 2)), jnp.asarray(grid), lambda z, _: z, **kwargs
    )


def test_refused_grids():
    with pytest.raises(ValueError, match="increase strictly"):
        attempt((1.0, -1.0))
    with pytest.raises(ValueError, match="at least 1 noise levels: got a grid of 0"):
        attempt(())
    with pytest.raises(ValueError, match="at least 2 noise levels: got a grid of 1"):
        information.mutual_information(jnp.ones(1), jnp.ones((1, 3)))


def test_refused_numbers():
    with pytest.raises(ValueError, match="num_draws must be at least 1: got 0"):
        attempt(num_draws=0)
    grid, errors = jnp.asarray([-1.0, 1.0]), jnp.ones((2, 3))
    with pytest.raises(ValueError, match="levels must be at least 2: got 1"):
        information.pointwise_discrete(grid, errors, levels=1)
    with pytest.raises(ValueError, match=r"positive: the smallest is 0\.0"):
        information.pointwise_density(grid, errors, jnp.asarray([1.0, 0.0]))


@pytest.mark.usefixtures("unchecked")
def test_refused_shapes():
    grid = jnp.asarray([-1.0, 1.0])
    with pytest.raises(ValueError, match=r"\(2, b\): got \(3, 2\)"):
        information.mutual_information(grid, jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"\(\) or \(3,\)"):
        information.profile(keys(0, 4), jnp.ones((3, 2)), grid, lambda z, _: z)


def test_the_quadrature_of_the_errors_is_right():
    """A check of the oracle: Gaussian data have the errors in closed form."""
    x, log_snrs = arrays(7, (3, 2)), np.asarray([-2.0, 1.0, 4.0])
    data = Mixture((1.0,), (MEAN,), (WIDTH,))
    np.testing.assert_allclose(
        errors_of(data, x, log_snrs, 61), gaussian_errors(x, log_snrs), rtol=1e-9
    )
