"""The adaptive histogram: moments by a plain loop, densities and variances by their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import interval, keys, within
from vdm import adaptive, noise_levels

HIGH, LOW = 7.0, -5.0


def by_hand(state, log_snr, error, decay):
    """One bin after the other: n errors of a batch share the weight 1 − decay^n evenly."""
    state = np.array(state)
    n = state.shape[1]
    edges = np.linspace(HIGH, LOW, n + 1)
    for k in range(n):
        inside = (log_snr <= edges[k]) & (log_snr > edges[k + 1]) & np.isfinite(error)
        if inside.any():
            kept = decay ** inside.sum()
            new = error[inside]
            moments = np.array([1.0, new.mean(), (new**2).mean()])
            state[0, k] += inside.sum()
            state[1:, k] = kept * state[1:, k] + (1 - kept) * moments
    return state


@pytest.mark.parametrize("decay", [0.0, 0.7, 0.99])
def test_moments_are_those_of_a_plain_loop(decay):
    rng, state = np.random.default_rng(0), adaptive.init(11)
    expected = np.zeros((4, 11))
    for _ in range(5):
        log_snr, error = rng.uniform(LOW, HIGH, 49), rng.gamma(0.5, 3.0, 49)
        error[:3] = np.nan, np.inf, -np.inf
        args = jnp.asarray(log_snr), jnp.asarray(error), HIGH, LOW
        state = adaptive.update(state, *args, decay=decay)
        expected = by_hand(expected, log_snr, error, decay)
    np.testing.assert_allclose(np.array(state), expected, rtol=1e-10, atol=1e-14)


def test_levels_at_the_ends_fall_into_the_last_bins():
    error = jnp.asarray([2.0, 3.0])
    state = adaptive.update(adaptive.init(4), jnp.asarray([HIGH, LOW]), error, HIGH, LOW)
    np.testing.assert_allclose(state.first / np.maximum(state.mass, 1e-9), [2, 0, 0, 3])


def test_a_batch_of_errors_that_are_not_finite_changes_nothing():
    state = adaptive.Histogram(*jnp.asarray(np.random.default_rng(1).random((4, 5))))
    after = adaptive.update(state, jnp.linspace(LOW, HIGH, 9), jnp.full(9, jnp.nan), HIGH, LOW)
    np.testing.assert_array_equal(np.array(after), np.array(state))


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("floor", [0.05, 0.5, 1.0])
def test_probabilities_are_the_square_root_law_and_a_floor(stratified, floor):
    first, second = np.array([1.0, 2.0, 0.5, 3.0]), np.array([2.0, 5.0, 0.25, 18.0])
    mass = np.array([0.3, 1.0, 0.8, 0.01])
    many = np.full(4, 1e18)
    state = adaptive.Histogram(*map(jnp.asarray, (many, mass, mass * first, mass * second)))
    spread = np.sqrt(second - first**2) if stratified else np.sqrt(second)
    expected = (1 - floor) * spread / spread.sum() + floor / 4
    probs = adaptive.probabilities(state, stratified=stratified, floor=floor)
    np.testing.assert_allclose(probs, expected, rtol=1e-7)


@pytest.mark.parametrize("stratified", [True, False])
def test_a_weighted_loss_is_looked_at_where_weight_and_spread_are(stratified):
    first, second = np.array([1.0, 2.0, 0.0, 3.0]), np.array([2.0, 5.0, 0.0, 18.0])
    met = np.array([1.0, 1, 0, 1])
    state = adaptive.Histogram(*map(jnp.asarray, (1e18 * met, met, first, second)))
    spread = np.sqrt(second - first**2) if stratified else np.sqrt(second)
    spread[2] = spread[[0, 1, 3]].mean()
    share = np.exp(-0.5 * np.array([5.5, 2.5, -0.5, -3.5])) * spread  # at the bins' centres
    expected = 0.7 * share / share.sum() + 0.3 / 4
    levels = adaptive.levels(
        state,
        jnp.linspace(0.001, 0.999, 200),
        HIGH,
        LOW,
        stratified=stratified,
        floor=0.3,
        weighting=lambda log_snr: jnp.exp(-0.5 * log_snr),
    )
    place = np.floor((HIGH - np.asarray(levels.log_snr)) / 3).astype(int)
    assert set(place) == {0, 1, 2, 3}
    np.testing.assert_allclose(1 / levels.inverse_density, expected[place] / 3, rtol=1e-7)


def test_unseen_bins_count_as_average_ones():
    state = adaptive.Histogram(
        jnp.asarray([9.0, 0.0, 9.0]),
        jnp.asarray([0.5, 0.0, 0.5]),
        jnp.zeros(3),
        jnp.asarray([0.5, 0.0, 4.5]),
    )
    np.testing.assert_allclose(
        adaptive.probabilities(state, floor=0.0), np.array([1, 2, 3]) / 6, rtol=1e-12
    )


@pytest.mark.parametrize("error", [None, 0.0, 3.0])
def test_without_any_spread_the_law_is_uniform(error):
    state = adaptive.init(7)
    if error is not None:
        log_snr = HIGH - (HIGH - LOW) * (jnp.arange(56) + 0.5) / 56  # eight in every bin
        state = adaptive.update(state, log_snr, jnp.full(56, error), HIGH, LOW, decay=0.0)
    np.testing.assert_allclose(adaptive.probabilities(state), 1 / 7, atol=1e-6)


def test_few_errors_say_little_of_their_variance():
    """Bins of one and of two equal errors count with their whole square, one of eight with less."""
    state, log_snr = adaptive.init(3), jnp.asarray([6.0] * 1 + [1.0] * 2 + [-4.0] * 8)
    state = adaptive.update(state, log_snr, jnp.full(11, 3.0), HIGH, LOW)
    spread = np.array([3.0, 3.0, 3.0 * np.sqrt(2 / 8)])
    probs = adaptive.probabilities(state, floor=0.0)
    np.testing.assert_allclose(probs, spread / spread.sum(), rtol=1e-6)


def test_from_empty_it_is_never_much_worse_than_even_levels():
    """The stratified variance ∫ Var/p of the histogram's own density, at every step."""
    centre = HIGH - (HIGH - LOW) * (np.arange(60) + 0.5) / 60
    even = np.mean(spread(centre) ** 2)

    @jax.jit
    def step(state, seed):
        key_u, key_error = jax.random.split(jax.random.fold_in(jax.random.key(0), seed))
        levels = adaptive.levels(state, noise_levels.stratified(key_u, 16), HIGH, LOW)
        error = noisy_error(key_error, levels.log_snr)
        return adaptive.update(state, levels.log_snr, error, HIGH, LOW)

    state, worst = adaptive.init(60), []
    for seed in range(300):
        state = step(state, seed)
        probs = np.asarray(adaptive.probabilities(state)) * 60
        worst.append(np.mean(spread(centre) ** 2 / probs) / even)
    assert max(worst) < 2.5 and worst[-1] < 1.1


def test_no_bin_is_refused():
    with pytest.raises(ValueError, match="num_bins must be at least 1: got 0"):
        adaptive.init(0)


def mean(log_snr):
    return 3 * np.exp(-0.5 * ((log_snr - 1) / 1.5) ** 2) + 0.2


def spread(log_snr):
    return 0.4 * np.exp(-0.5 * ((log_snr - 3) / 1.2) ** 2) + 0.15


def noisy_error(key, log_snr):
    width = 0.4 * jnp.exp(-0.5 * ((log_snr - 3) / 1.2) ** 2) + 0.15
    centre = 3 * jnp.exp(-0.5 * ((log_snr - 1) / 1.5) ** 2) + 0.2
    # A shifted exponential: skewed, of unit variance.
    return centre + width * (jax.random.exponential(key, log_snr.shape) - 1)


DRAWS = {True: noise_levels.stratified, False: noise_levels.uniform}


def learned(stratified):
    @jax.jit
    def train():
        def step(state, seed):
            key = jax.random.fold_in(jax.random.key(0), seed)
            key_u, key_error = jax.random.split(key)
            u = DRAWS[stratified](key_u, 98)
            levels = adaptive.levels(state, u, HIGH, LOW, stratified=stratified)
            error = noisy_error(key_error, levels.log_snr)
            return adaptive.update(state, levels.log_snr, error, HIGH, LOW, decay=0.999), None

        return jax.lax.scan(step, adaptive.init(60), jnp.arange(1500))[0]

    return train()


@pytest.mark.parametrize("stratified", [True, False])
def test_it_finds_the_density_that_varies_least(stratified):
    state = learned(stratified)
    nodes, weights = interval(400, LOW, HIGH)
    second = mean(nodes) ** 2 + spread(nodes) ** 2
    root = spread(nodes) if stratified else np.sqrt(second)
    best = root / (weights @ root)

    centres = HIGH - (HIGH - LOW) * (np.arange(60) + 0.5) / 60
    density = adaptive.probabilities(state, stratified=stratified, floor=0.05)
    density = np.asarray(density) * 60 / (HIGH - LOW)
    expected = 0.95 * np.interp(centres, nodes, best) + 0.05 / (HIGH - LOW)
    gap = np.abs(density - expected).sum() * (HIGH - LOW) / 60
    assert gap < 0.08 < np.abs(1 / (HIGH - LOW) - expected).sum() * (HIGH - LOW) / 60

    truth = 0.5 * weights @ mean(nodes)
    optimum = (0.5 * weights @ root) ** 2 - (0.0 if stratified else truth**2)

    @jax.jit
    @jax.vmap
    def estimates(key):
        key_u, key_error = jax.random.split(key)
        u = DRAWS[stratified](key_u, 98)
        levels = adaptive.levels(state, u, HIGH, LOW, stratified=stratified)
        return 0.5 * jnp.mean(levels.inverse_density * noisy_error(key_error, levels.log_snr))

    means = np.asarray(estimates(keys(stratified, 4000)))
    assert within(means, truth)
    variance = 98 * means.var(ddof=1)
    noise = 5 * np.sqrt(2 / 4000)
    assert optimum * (1 - noise) < variance < optimum * (1.15 + noise)
    if stratified:
        uniform = 0.25 * (HIGH - LOW) * weights @ spread(nodes) ** 2
    else:
        uniform = 0.25 * (HIGH - LOW) * weights @ second - truth**2
    assert variance < 0.9 * uniform
