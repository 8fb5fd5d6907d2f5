"""The bound as a likelihood of θ, against x|θ ~ N(Aθ + b, S) whose density, score and posterior
are closed.

The network is the exact denoiser, so that with wide ends the bound has no gap. The pair ±ε has no
product of noise and θ, and even times sum what is left almost exactly: gradients and differences
are compared to 1e-5, of which 1e-6 is what the ends at λ = ±18 leave out.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from oracles import ancestral_step, keys, within
from vdm import VDM, few_steps, inference
from vdm.condition import Conditions
from vdm.likelihoods import discretised, gaussian
from vdm.networks import SetTransformer, from_apply
from vdm.schedules import linear

A = np.array([[1.5, -0.3], [0.2, 0.8], [-0.7, 0.4]])
B = np.array([0.5, -1.0, 0.3])
ROOT = np.array([[0.9, 0.0, 0.0], [0.4, 0.5, 0.0], [-0.3, 0.2, 1.3]])
S = ROOT @ ROOT.T
X = np.array([[0.3, 1.1, -0.9], [2.0, -1.0, 0.1], [0.0, 0.5, 2.0]])
THETA = np.array([0.7, -0.4])
GRID = np.array([[0.7, -0.4], [0.75, -0.4], [0.2, 0.1], [1.4, -1.0]])
ENDS = 18.0


def init(key, z, log_snr, cond):
    return {}


def denoise(z, log_snr, mean, covariance):
    """E[ε|z] = σ (α² S + σ² I)⁻¹ (z − α m), a mean for each row and covariances [b, d, d]."""
    a2 = jax.nn.sigmoid(log_snr)[:, None, None]
    a, s = jnp.sqrt(a2[:, :, 0]), jnp.sqrt(1 - a2[:, :, 0])
    total = a2 * covariance + (1 - a2) * np.eye(z.shape[1])[None]
    return s * jnp.linalg.solve(total, (z - a * mean)[..., None])[..., 0]


def by_vector(params, z, log_snr, cond, *, train, key):
    variance, axes = np.linalg.eigh(S)
    a2 = jax.nn.sigmoid(log_snr)[:, None]
    a, s2 = jnp.sqrt(a2), jax.nn.sigmoid(-log_snr)[:, None]
    gap = (z - a * (cond @ A.T + B[None])) @ axes
    return jnp.sqrt(s2) * (gap / (a2 * variance[None] + s2)) @ axes.T


def exact(high=ENDS, low=-ENDS):
    """A model of these ends, and how wide the decoder of its lowest noise is."""
    return VDM(linear(high, low), NETWORK, gaussian(float(np.exp(-high / 2))))


NETWORK = from_apply(init, by_vector, cond_dim=2)
MODEL = exact()
PARAMS = {"schedule": {"ends": {}, "shape": {}}, "network": {}}


def log_density(x, theta, mean=None, covariance=S):
    mean = A @ theta + B if mean is None else mean
    return scipy.stats.multivariate_normal(mean, covariance).logpdf(x)


def closed_score(x, theta):
    return A.T @ np.linalg.solve(S, np.sum(x - (A @ theta + B), axis=0))


def chain_density(model, num_steps, x, theta):
    """log p(x|θ) of the chain itself: Gaussian steps from N(0, I) down to z_0, and the decoder."""
    levels = np.asarray(few_steps.even(model, PARAMS, num_steps).log_snrs)
    mean, covariance = np.zeros(3), np.eye(3)
    for log_snr_t, log_snr_s in itertools.pairwise(levels):
        matrix, shift, variance = ancestral_step(A @ theta + B, S, float(log_snr_t), log_snr_s)
        mean = matrix @ mean + shift
        covariance = matrix @ covariance @ matrix.T + variance * np.eye(3)
    alpha2 = 1 / (1 + np.exp(-levels[-1]))
    decoder = model.likelihood.scale**2 * np.eye(3)
    return log_density(x, theta, mean / np.sqrt(alpha2), covariance / alpha2 + decoder)


def test_the_gradient_of_the_bound_is_the_closed_score():
    # In four batches, the last of them not full.
    given = {"num_samples": 128, "batch_size": 110}
    log_prob = inference.log_prob_fn(MODEL, PARAMS, X, keys(0, 3), **given)
    for theta in (THETA, np.array([-1.3, 2.1])):
        found = jax.jit(jax.value_and_grad(log_prob))(jnp.asarray(theta))
        np.testing.assert_allclose(found[1], closed_score(X, theta), rtol=1e-5, atol=1e-5)
        # And its values differ as the log-densities do; what they share has noise.
        rise = found[0] - log_prob(jnp.zeros(2))
        expected = np.sum(log_density(X, theta) - log_density(X, np.zeros(2)))
        np.testing.assert_allclose(rise, expected, rtol=1e-5)
    assert found[0] == jax.jit(log_prob)(jnp.asarray(theta))  # the same noise again


def test_the_likelihood_of_the_ode_and_its_gradient_by_theta():
    # The prior N(0, I) of the ODE costs e^{λ_min/2}, 3e-7, and 64 steps of fifth order 1e-6 of
    # the gradient; 32 steps cost ten times as much.
    model = exact(18.0, -30.0)
    log_prob = inference.log_prob_fn(model, PARAMS, X, keys(0, 3), ode=64)
    value, gradient = jax.jit(jax.value_and_grad(log_prob))(jnp.asarray(THETA))
    np.testing.assert_allclose(value, np.sum(log_density(X, THETA)), rtol=1e-5)
    np.testing.assert_allclose(gradient, closed_score(X, THETA), rtol=1e-5)


@pytest.mark.parametrize("as_chain", [False, True])
def test_every_step_once_is_the_chains_bound(as_chain):
    # As many even times as there are steps: one in each. Without noise ε − ε̂ is −ε̂(α x).
    num, model = 6, exact(5.0, -4.0)
    given = {"chain": few_steps.even(model, PARAMS, num)} if as_chain else {"num_steps": num}
    log_prob = inference.log_prob_fn(model, PARAMS, X, keys(1, 3), num_samples=2 * num, **given)
    levels = np.linspace(-4.0, 5.0, num + 1)

    def expected(theta):
        total = 0.0
        for low, high in itertools.pairwise(levels):
            alpha2 = 1 / (1 + np.exp(-low))
            away = np.linalg.solve(alpha2 * S + (1 - alpha2) * np.eye(3), (X - A @ theta - B).T)
            total -= 0.5 * np.expm1(high - low) * (1 - alpha2) * alpha2 * np.sum(away**2)
        return total

    found = log_prob(jnp.asarray(THETA)) - log_prob(jnp.zeros(2))
    np.testing.assert_allclose(found, expected(THETA) - expected(np.zeros(2)), rtol=1e-9)


@pytest.fixture(scope="module")
def many():
    """A thousand times one example, with noise of its own each: errors can be counted."""
    x = np.tile(X[:1], (1000, 1))
    return inference.profile(
        MODEL, PARAMS, x, GRID, keys(2, 1000), num_samples=64, reference=0, batch_size=50_000
    )


def test_a_profile_is_the_negative_log_density(many):
    expected = -np.array([log_density(X[0], theta) for theta in GRID])
    assert within(many.mean, expected[None])
    assert within(many.excess, (expected - expected[0])[None])
    np.testing.assert_array_equal(many.reference, 0)


def test_the_errors_are_those_of_repetition(many):
    # A variance of 1000 values, and the mean of 1000 variances of 8: 5 standard errors, for tails
    # that are heavier than normal ones by as much again.
    error = 5 * np.sqrt(2 / 999 + 2 / (7 * 1000)) * 1.5
    for values, errors in ((many.mean, many.sem), (many.excess[:, 1:], many.excess_sem[:, 1:])):
        ratio = np.mean(np.square(errors), axis=0) / np.var(values, axis=0, ddof=1)
        np.testing.assert_allclose(ratio, 1.0, atol=error)


def test_the_noise_that_all_conditions_share_falls_out_of_differences(many):
    # GRID[1] is next to GRID[0]: as if their noise were independent the errors would add.
    paired = np.sqrt(np.mean(np.square(many.excess_sem[:, 1])))
    unpaired = np.sqrt(np.mean(np.square(many.sem[:, 0]) + np.square(many.sem[:, 1])))
    assert 5 * paired < unpaired


def test_batches_and_other_examples_change_nothing():
    given = {"num_samples": 32, "num_sets": 4}
    whole = inference.profile(MODEL, PARAMS, X, GRID, keys(3, 3), **given)
    parts = inference.profile(MODEL, PARAMS, X, GRID, keys(3, 3), batch_size=14, **given)
    alone = inference.profile(MODEL, PARAMS, X[1:2], GRID[2:], keys(3, 3)[1:2], **given)
    np.testing.assert_allclose(parts.sets, whole.sets, rtol=1e-10)
    np.testing.assert_allclose(alone.sets, whole.sets[1:2, :, 2:], rtol=1e-10)
    np.testing.assert_array_equal(whole.reference, np.argmin(whole.mean, axis=1))


def test_other_conditions_are_not_compiled_again():
    from vdm.inference import bound

    given = {"num_samples": 32, "num_sets": 4}
    first = inference.profile(MODEL, PARAMS, X, GRID, keys(4, 3), num_steps=5, **given)
    compiled = bound.diffusion._cache_size()
    other = inference.profile(exact(), PARAMS, X, GRID + 1.0, keys(5, 3), num_steps=9, **given)
    assert bound.diffusion._cache_size() == compiled
    assert not np.any(first.mean == other.mean)


def test_observations_of_one_theta_are_joined():
    line = np.stack([np.linspace(-2.0, 2.0, 9), np.full(9, -0.4)], axis=1)
    found = inference.profile(MODEL, PARAMS, X, line, keys(6, 3), num_samples=256, num_sets=2)
    together = inference.joint(found, reference=2)
    sums = np.sum(np.asarray(found.sets), axis=0)
    np.testing.assert_allclose(together.mean[0], sums.mean(0), rtol=1e-12)
    apart = sums - sums[:, 2:3]
    error = apart.std(0, ddof=1) / np.sqrt(2)
    np.testing.assert_allclose(together.excess_sem[0], error, rtol=1e-12, atol=1e-12)
    # Closed posterior weights on the line, with a prior that is not flat.
    prior = np.linspace(0.0, 3.0, 9)
    exact_logs = prior + np.array([np.sum(log_density(X, theta)) for theta in line])
    expected = np.exp(exact_logs - exact_logs.max())
    weights = inference.posterior(together, prior)
    np.testing.assert_allclose(weights[0], expected / expected.sum(), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(np.sum(inference.posterior(found), axis=1), 1.0)


def test_nuts_draws_from_the_closed_posterior():
    import blackjax

    log_prob = inference.log_prob_fn(MODEL, PARAMS, X, keys(7, 3), num_samples=48)
    prior = np.array([0.8, 1.5])  # standard deviations around zero
    precision = 3 * A.T @ np.linalg.solve(S, A) + np.diag(prior**-2.0)
    covariance = np.linalg.inv(precision)
    mean = covariance @ A.T @ np.linalg.solve(S, np.sum(X - B, axis=0))

    def log_posterior(theta):
        return log_prob(theta) - 0.5 * jnp.sum(jnp.square(theta / prior))

    nuts = blackjax.nuts(log_posterior, 0.4, jnp.asarray([0.5, 1.0]))

    @jax.jit
    def run(key, state):
        _, drawn = jax.lax.scan(
            lambda state, key: (nuts.step(key, state)[0],) * 2, state, jax.random.split(key, 1050)
        )
        return drawn.position[50:]

    drawn = np.asarray(run(jax.random.key(8), nuts.init(jnp.zeros(2))))
    away = drawn - mean
    products = (away[:, :, None] * away[:, None]).reshape(len(away), 4)
    # Means of blocks of 50 draws are as good as independent: their spread is the error.
    for values, truth in ((drawn, mean), (products, covariance.ravel())):
        assert within(values.reshape(20, 50, -1).mean(axis=1), truth[None])


@pytest.fixture(scope="module")
def simulated():
    """Two hundred θ of the prior, data of theirs, and the grid posterior that the bound makes."""
    rng = np.random.default_rng(9)
    theta = rng.normal(size=200)
    line = np.linspace(-4.5, 4.5, 61)
    conds = np.stack([line, np.full(61, -0.4)], axis=1)
    mean = np.stack([theta, np.full(200, -0.4)], axis=1) @ A.T + B
    x = mean + rng.normal(size=(200, 3)) @ ROOT.T
    model = exact(12.0, -12.0)
    found = inference.profile(
        model, PARAMS, x, conds, keys(9, 200), num_samples=64, num_sets=2, batch_size=50_000
    )
    return theta[:, None], line, np.asarray(inference.posterior(found, -0.5 * line**2))


def test_ranks_of_simulated_parameters_are_uniform(simulated):
    theta, line, weights = simulated
    drawn = inference.grid_draws(jax.random.key(10), weights, line, 99)
    ranks = inference.ranks(drawn, theta)
    assert inference.uniformity(ranks, 99)[0] > 0.05
    levels = np.array([0.5, 0.8, 0.95])
    found = inference.coverage(ranks, 99, levels)
    np.testing.assert_allclose(found.nominal, levels, atol=0.02)
    assert np.all(np.abs(found.share[:, 0] - found.nominal) < 3 * found.standard_error)


def test_a_posterior_that_is_too_narrow_is_seen(simulated):
    theta, line, weights = simulated
    narrow = weights**2 / np.sum(weights**2, axis=1, keepdims=True)
    ranks = inference.ranks(inference.grid_draws(jax.random.key(10), narrow, line, 99), theta)
    assert inference.uniformity(ranks, 99)[0] < 1e-3
    found = inference.coverage(ranks, 99, np.array([0.5, 0.8]))
    assert np.all(found.share[:, 0] < found.nominal - 3 * found.standard_error)


def test_ranks_bins_and_intervals_by_hand():
    draws = np.array([[[0.1, 5.0], [0.2, 6.0], [0.3, 7.0]]])
    np.testing.assert_array_equal(inference.ranks(draws, np.array([[0.25, 4.0]])), [[2, 0]])
    # 7 draws, ranks 0..7; in 3 bins by r·3//8: {0, 1, 2}, {3, 4, 5}, {6, 7}.
    ranks = np.repeat(np.arange(8), [9, 4, 3, 2, 2, 6, 8, 7])[:, None]
    expected = scipy.stats.chisquare([16, 10, 15], 41 * np.array([3, 3, 2]) / 8).pvalue
    np.testing.assert_allclose(inference.uniformity(ranks, 7, num_bins=3), [expected])
    # |(r + ½)/8 − ½| is 1/16 for ranks 3 and 4, 3/16 for 2 and 5, and then 5/16.
    found = inference.coverage(ranks, 7, np.array([0.4, 0.35]))
    np.testing.assert_allclose(found.nominal, [0.5, 0.25])
    np.testing.assert_allclose(found.share[:, 0], [13 / 41, 4 / 41])
    np.testing.assert_allclose(found.standard_error, np.sqrt([0.25 / 41, 0.1875 / 41]))


def test_draws_of_a_grid_fill_its_cells():
    line, weights = np.array([0.0, 1.0, 4.0]), np.array([[0.2, 0.5, 0.3]])
    drawn = inference.grid_draws(jax.random.key(11), weights, line, 20_000)
    assert drawn.shape == (1, 20_000, 1)
    edges, total = np.array([-0.5, 0.5, 2.5, 5.5]), np.append(0.0, np.cumsum(weights))
    test = scipy.stats.kstest(drawn[0, :, 0], lambda value: np.interp(value, edges, total))
    assert test.pvalue > 0.01


MEANS = np.array([[0.4, -0.2, 0.1], [-0.5, 0.6, 0.8], [0.1, 0.3, -0.9]])
SPREADS = np.stack([S, S, np.diag([0.3, 1.7, 0.6])])  # the first two classes differ in the mean


def by_class(params, z, log_snr, cond, *, train, key):
    return denoise(z, log_snr, jnp.asarray(MEANS)[cond], jnp.asarray(SPREADS)[cond])


CLASSES = VDM(
    linear(ENDS, -ENDS), from_apply(init, by_class, num_classes=3), gaussian(np.exp(-ENDS / 2))
)


def test_classification_is_that_of_bayes():
    rng, log_prior = np.random.default_rng(12), np.log([0.5, 0.2, 0.3])
    x = rng.normal(0.1, 1.0, (300, 3))
    found = inference.classify(
        CLASSES, PARAMS, x, keys(12, 300), log_prior=log_prior, num_samples=128, batch_size=20_000
    )
    np.testing.assert_allclose(jax.nn.logsumexp(found, axis=1), 0.0, atol=1e-12)
    joint = log_prior + np.stack(
        [log_density(x, None, m, s) for m, s in zip(MEANS, SPREADS, strict=True)], axis=1
    )
    # Equal covariances have equal noise, which falls out; others have an unbiased difference.
    odds, expected = (values - values[:, :1] for values in (np.asarray(found), joint))
    np.testing.assert_allclose(odds[:, 1], expected[:, 1], rtol=1e-5, atol=1e-5)
    assert within(odds[:, 2] - expected[:, 2], 0.0)


def test_classes_are_those_of_the_network_or_any_conditions():
    every = inference.classify(CLASSES, PARAMS, X, keys(13, 3), num_samples=8)
    for given in ({"num_classes": 3}, {"conds": np.arange(3)}):
        again = inference.classify(CLASSES, PARAMS, X, keys(13, 3), num_samples=8, **given)
        np.testing.assert_array_equal(every, again)
    two = inference.classify(CLASSES, PARAMS, X, keys(13, 3), num_samples=8, conds=np.array([2, 0]))
    np.testing.assert_allclose(
        two[:, 0] - two[:, 1], every[:, 2] - every[:, 0], rtol=1e-9, atol=1e-9
    )


def test_several_kinds_of_conditions():
    def both(params, z, log_snr, cond, *, train, key):
        moved = cond.vector + cond.label[:, None]
        return by_vector(params, z, log_snr, moved, train=train, key=key)

    model = VDM(
        linear(ENDS, -ENDS), from_apply(init, both, num_classes=2, cond_dim=2), MODEL.likelihood
    )
    conds = Conditions(label=np.array([0, 1, 1, 0]), vector=GRID)
    given = {"num_samples": 32, "num_sets": 4}
    found = inference.profile(model, PARAMS, X, conds, keys(14, 3), **given)
    moved = GRID + np.array([[0.0], [1.0], [1.0], [0.0]])
    expected = inference.profile(MODEL, PARAMS, X, moved, keys(14, 3), **given)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-10)
    log_prob = inference.log_prob_fn(model, PARAMS, X, keys(14, 3), num_samples=128)
    gradient = jax.grad(lambda vector: log_prob(Conditions(np.asarray(1), vector)))
    score = closed_score(X, THETA + 1.0)
    np.testing.assert_allclose(gradient(jnp.asarray(THETA)), score, rtol=1e-5)


def test_integers_and_a_chain_that_clips_have_the_models_bound():
    # Ends so near that every term counts, and a mean of x|θ outside the range.
    model, num = VDM(linear(2.0, -0.5), NETWORK, discretised(9)), 20_000
    x = np.array([[3, 5, 0], [8, 1, 2]])
    chain = few_steps.even(model, PARAMS, 3, clip_denoised=True)
    found = inference.profile(
        model, PARAMS, x, GRID, keys(15, 2), chain=chain, num_samples=12_288, batch_size=9000
    )
    rows = np.arange(2 * num) % 2
    vlb = jax.jit(model.vlb)
    again = vlb(PARAMS, jax.random.key(16), x[rows], GRID[rows], chain=chain).total
    again = np.asarray(again).reshape(num, 2)
    error = np.hypot(np.diagonal(found.sem), again.std(0) / np.sqrt(num))
    assert np.all(error < 0.05)
    assert np.all(np.abs(np.diagonal(found.mean) - again.mean(0)) < 5 * error)


def test_few_steps_and_few_paths_bend_a_profile():
    model, num = exact(3.0, -5.0), 16
    given = {
        "chain": few_steps.even(model, PARAMS, num),
        "num_steps": (num, None),
        "num_paths": (1, 512),
        "num_samples": 2 * num * 8,
    }
    pair = np.array([[0.7, -0.4], [0.2, 0.1]])
    found = inference.dependence(model, PARAMS, X, pair, keys(17, 3), batch_size=20_000, **given)
    assert found.bound == ("T=16", "T=inf", "K=1", "K=512")
    assert found.excess.shape == found.excess_sem.shape == (4, 3, 2)
    rise = np.where(found.best == 0, 1, -1) * np.sum(found.excess, axis=2)
    error = np.sum(found.excess_sem, axis=2)
    # The continuous row is the profile itself; one path has the mean of the bound of T steps.
    alone = inference.profile(
        model, PARAMS, X, pair, keys(17, 3), num_samples=2 * num * 8, batch_size=20_000
    )
    np.testing.assert_allclose(found.excess[1], alone.excess, rtol=1e-9, atol=1e-9)
    assert np.all(np.abs(rise[2] - rise[0]) < 5 * np.hypot(error[2], error[0]))
    # 512 paths come to the likelihood of the chain itself, and are not where one is.
    own = -np.array(
        [np.diff([chain_density(model, num, x, theta) for theta in pair])[0] for x in X]
    )
    assert np.all(np.abs(rise[3] - own) < 5 * error[3])
    assert np.any(np.abs(rise[0] - own) > 10 * error[3])


PLAIN = {"x": X, "conds": GRID, "key": jax.random.key(0)}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": X[:0]}, r"at least one example, \[n, \*d\]: got shape \(0, 3\)"),
        ({"key": keys(0, 2)}, r"shape \(\) or \(3,\): got \(2,\)"),
        ({"conds": None}, "conds must be m conditions, batch axis first: got None"),
        ({"conds": np.asarray(0.5)}, "batch axis first: got a single one"),
        ({"conds": GRID[:0]}, "m at least 1: got none"),
        ({"conds": GRID[:, :1]}, r"floats of shape \(4, 2\): got shape \(4, 1\)"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1: got 0"),
        ({"num_samples": 100}, "a multiple of 16, for 8 sets of pairs ±ε: got 100"),
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1: got 0"),
        ({"num_sets": 1}, "at least 2 independent sets: got 1"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1: got 0"),
        ({"reference": 4}, "reference must be from 0 to 3: got 4"),
    ],
)
def test_a_profile_refuses(changed, message):
    given = PLAIN | changed
    with pytest.raises(ValueError, match=message):
        inference.profile(MODEL, PARAMS, **given)


@pytest.mark.usefixtures("unchecked")
def test_sets_of_points_are_refused():
    network = SetTransformer(channels=4, num_heads=1, cond_dim=1)
    model = VDM(linear(6.0, -6.0), network, gaussian(0.1))
    x, theta = np.zeros((1, 3, 2)), np.zeros((2, 1))
    with pytest.raises(ValueError, match="examples of one shape: got a network of sets"):
        inference.profile(model, {}, x, theta, jax.random.key(0))
    with pytest.raises(ValueError, match="examples of one shape: got a network of sets"):
        inference.log_prob_fn(model, {}, x, jax.random.key(0), ode=4)(theta[0])


@pytest.mark.usefixtures("unchecked")
def test_types_that_are_refused():
    with pytest.raises(TypeError, match="real numbers: got int64 data"):
        inference.profile(MODEL, PARAMS, **PLAIN | {"x": X.astype(int)})
    with pytest.raises(TypeError, match=r"typed key from jax.random.key\(seed\): got an array"):
        inference.profile(MODEL, PARAMS, **PLAIN | {"key": jnp.zeros(2, jnp.uint32)})
    with pytest.raises(TypeError, match=r"floats of shape \(4, 2\): got int64"):
        inference.profile(MODEL, PARAMS, **PLAIN | {"conds": GRID.astype(int)})


def test_what_excludes_a_chain():
    chain = few_steps.even(MODEL, PARAMS, 3)
    both = {"num_steps": 3, "chain": chain}
    for fn in (
        lambda: inference.profile(MODEL, PARAMS, **PLAIN, **both),
        lambda: inference.classify(MODEL, PARAMS, X, PLAIN["key"], conds=GRID, **both),
        lambda: inference.log_prob_fn(MODEL, PARAMS, X, PLAIN["key"], **both),
    ):
        with pytest.raises(ValueError, match="a chain takes the place of num_steps: got num_steps"):
            fn()
    for given in ({"num_steps": 3}, {"chain": chain}):
        with pytest.raises(ValueError, match="the ODE has no num_steps and no chain: got one"):
            inference.log_prob_fn(MODEL, PARAMS, X, PLAIN["key"], ode=5, **given)


def test_log_prob_refuses():
    with pytest.raises(ValueError, match="a multiple of 2, for 1 sets of pairs ±ε: got 3"):
        inference.log_prob_fn(MODEL, PARAMS, X, PLAIN["key"], num_samples=3)
    with pytest.raises(ValueError, match="num_samples=1: got num_samples=2"):
        inference.log_prob_fn(MODEL, PARAMS, X, PLAIN["key"], num_samples=2, ode=3)(THETA)
    log_prob = inference.log_prob_fn(MODEL, PARAMS, X, PLAIN["key"], num_samples=4)
    with pytest.raises(ValueError, match=r"floats of shape \(1, 2\): got shape \(1, 3\)"):
        log_prob(np.zeros(3))
    with pytest.raises(TypeError, match=r"floats of shape \(1, 2\): got int64"):
        log_prob(np.zeros(2, int))


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (np.zeros(3), r"one entry for each of 4 conditions: got shape \(3,\)"),
        (np.array([0.0, np.nan, 0.0, 0.0]), "never NaN"),
        (np.array([0.0, np.inf, 0.0, 0.0]), "never NaN or"),
        (np.full(4, -np.inf), "finite somewhere"),
    ],
)
def test_priors_that_are_refused(many, prior, message):
    with pytest.raises(ValueError, match=message):
        inference.posterior(many, prior)
    with pytest.raises(ValueError, match=message):
        inference.classify(
            MODEL, PARAMS, X, PLAIN["key"], conds=GRID, log_prior=prior, num_samples=2
        )


def test_classes_that_are_refused():
    given = (X, PLAIN["key"])
    with pytest.raises(ValueError, match="got num_classes=3 and conds"):
        inference.classify(CLASSES, PARAMS, *given, num_classes=3, conds=np.arange(3))
    with pytest.raises(ValueError, match="network without classes: got neither"):
        inference.classify(MODEL, PARAMS, *given)
    with pytest.raises(ValueError, match=r"integers in 0\.\.2 of shape \(4,\): got 3"):
        inference.classify(CLASSES, PARAMS, *given, num_classes=4)


def test_dependence_refuses(many):
    given = {"num_samples": 4, "num_sets": 2}
    for changed, message in (
        ({"num_steps": ()}, "expected a number of steps, or a chain and a number of paths"),
        ({"num_steps": (0,)}, "num_steps must be a whole number of at least 1: got 0"),
        (
            {"chain": few_steps.even(MODEL, PARAMS, 3), "num_paths": (0,)},
            "num_paths must be a whole number of at least 1: got 0",
        ),
        ({"num_sets": 1}, "at least 2 independent sets: got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            inference.dependence(MODEL, PARAMS, **PLAIN, **given | changed)
    with pytest.raises(ValueError, match="reference must be from 0 to 3: got -1"):
        inference.joint(many, -1)


DRAWS, RANKS = np.zeros((4, 5, 2)), np.arange(40)[:, None] % 10


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fn", "given", "message"),
    [
        ("ranks", (DRAWS, np.zeros((4, 3))), r"got shapes \(4, 5, 2\) and \(4, 3\)"),
        ("ranks", (DRAWS[0], np.zeros((4, 2))), r"got shapes \(5, 2\) and \(4, 2\)"),
        ("ranks", (DRAWS * np.nan, np.zeros((4, 2))), "finite draws and theta"),
        ("uniformity", (RANKS[:, 0], 9), r"shape \[n, c\] and not empty: got \(40,\)"),
        ("uniformity", (RANKS, 8), r"ranks must be in 0\.\.8: got 0 to 9"),
        ("uniformity", (RANKS - 1, 9), r"ranks must be in 0\.\.9: got -1 to 8"),
        ("uniformity", (RANKS, 0), "num_draws must be a whole number of at least 1: got 0"),
        ("coverage", (RANKS, 9, np.array([0.5, 1.0])), "levels must be numbers between 0 and 1"),
        ("coverage", (RANKS, 9, np.asarray(0.5)), r"between 0 and 1, shape \[l\]: got 0.5"),
    ],
)
def test_calibration_refuses(fn, given, message):
    with pytest.raises(ValueError, match=message):
        getattr(inference, fn)(*given)


def test_bins_that_are_refused():
    with pytest.raises(ValueError, match="num_bins must be from 2 to the 10 ranks: got 11"):
        inference.uniformity(RANKS, 9, num_bins=11)
    with pytest.raises(ValueError, match="from 2 to the 10 ranks: got 1"):
        inference.uniformity(RANKS, 9, num_bins=1)
    with pytest.raises(ValueError, match="needs 5 expected in a bin: got 4 for 40 simulated"):
        inference.uniformity(RANKS, 9, num_bins=10)


@pytest.mark.parametrize(
    ("weights", "line", "num", "message"),
    [
        (np.ones((1, 2)) / 2, np.array([1.0, 0.0]), 5, "increase strictly"),
        (np.ones((1, 1)), np.array([1.0]), 5, "at least two points"),
        (np.ones((1, 2)) / 2, np.array([1.0, 2.0]), 0, "num must be a whole number"),
        (np.ones((1, 2)), np.array([1.0, 2.0]), 5, "sum to 1"),
        (np.array([[-0.5, 1.5]]), np.array([1.0, 2.0]), 5, "not be negative"),
    ],
)
def test_grids_that_are_refused(weights, line, num, message):
    with pytest.raises(ValueError, match=message):
        inference.grid_draws(jax.random.key(0), weights, line, num)


@pytest.mark.usefixtures("unchecked")
def test_weights_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"weights of shape \[n, 3\]: got \(1, 2\)"):
        inference.grid_draws(jax.random.key(0), np.ones((1, 2)) / 2, np.arange(3.0), 5)
