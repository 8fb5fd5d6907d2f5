"""Times: each uniform by itself, and the spread ones far steadier together.

Laws of λ: each is the density it says, so that no integral over λ changes its value.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from oracles import (
    SKEWED,
    exact_eps,
    gaussian_data,
    gaussian_diffusion,
    interval,
    keys,
    mixture_draws,
    mutual_information,
    within,
)
from vdm import adaptive, losses, noise_levels, schedules

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
    np.testing.assert_array_equal(np.sort(np.floor(t * n)), np.arange(n))


strata_of_seven = jax.jit(jax.vmap(lambda key: noise_levels.stratified(key, 7)))


@functools.partial(jax.jit, static_argnums=0)
def times_of_many(draw, many):
    """[key, 49]"""
    return jax.vmap(lambda key: draw(key, 49))(many)


def test_strata_come_in_random_order():
    t = np.asarray(strata_of_seven(keys(4, 2000)))
    place = np.floor(7 * t).astype(int)
    for example in (0, 3, 6):
        assert stats.chisquare(np.bincount(place[:, example], minlength=7)).pvalue > 1e-4


@pytest.mark.parametrize("draw", ALL)
@pytest.mark.parametrize("position", [0, 30, 48])
def test_each_time_is_uniform_by_itself(draw, position):
    t = np.asarray(times_of_many(draw, keys(1, 2000)))[:, position]
    assert stats.kstest(t, "uniform").pvalue > 1e-4


def test_stratified_times_are_uniform_in_their_strata():
    t = np.asarray(strata_of_seven(keys(2, 2000)))
    assert stats.kstest(np.mod(7 * t[:, 3], 1), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("draw", [noise_levels.low_discrepancy, noise_levels.stratified])
def test_spread_times_estimate_an_integral_far_better(draw):
    def estimates(draw):
        means = np.exp(2 * np.asarray(times_of_many(draw, keys(3, 2000))[:500])).mean(1)
        return means - (np.exp(2) - 1) / 2

    spread, independent = estimates(draw), estimates(noise_levels.uniform)
    assert abs(spread.mean()) < 5 * spread.std() / np.sqrt(500)
    assert spread.var() < independent.var() / 30


@pytest.mark.float32
@pytest.mark.parametrize("draw", ALL)
def test_times_stay_float32(draw):
    assert draw(jax.random.key(0), 3).dtype == jnp.float32


HIGH, LOW = 7.0, -5.0
SCHEDULES = {
    "linear": schedules.linear(HIGH, LOW),
    "cosine": schedules.cosine(HIGH, LOW, shift=1.0),
    "flow_matching": schedules.flow_matching(HIGH, LOW),
    "edm": schedules.edm(HIGH, LOW),
    "learned_linear": schedules.learned_linear(HIGH, LOW),
    "learned_monotone": schedules.learned_monotone(HIGH, LOW, width=9),
}


def some_histogram(seed=0, bins=13):
    """What no training would ever leave behind: some bins unseen, others very uneven."""
    rng = np.random.default_rng(seed)
    mass = np.where(rng.random(bins) < 0.3, 0.0, rng.random(bins))
    first = rng.gamma(0.3, 4.0, bins)
    second = first**2 * (1 + rng.gamma(0.5, 2.0, bins))
    parts = (100 * mass, mass, mass * first, mass * second)
    return adaptive.Histogram(*(jnp.asarray(part) for part in parts))


def from_schedule(schedule):
    def law(u):
        params = fresh(schedule)
        return noise_levels.from_times(lambda t: schedule.log_snr(params, t), u)

    return law


@functools.partial(jax.jit, static_argnums=0)
def fresh(schedule):
    return schedule.init(jax.random.key(0))


LAWS = {name: from_schedule(schedule) for name, schedule in SCHEDULES.items()} | {
    "sigmoid": lambda u: noise_levels.sigmoid_law(u, HIGH, LOW),
    "adaptive": lambda u: adaptive.levels(some_histogram(), u, HIGH, LOW),
    "adaptive iid": lambda u: adaptive.levels(some_histogram(), u, HIGH, LOW, stratified=False),
    "adaptive empty": lambda u: adaptive.levels(adaptive.init(5), u, HIGH, LOW),
}
every_law = pytest.mark.parametrize("name", LAWS)


def bump(log_snr):
    return np.exp(-0.2 * log_snr) * (1.5 + np.sin(log_snr))


def integral(fn):
    nodes, weights = interval(200, LOW, HIGH)
    return weights @ fn(nodes)


probabilities = jax.jit(adaptive.probabilities, static_argnames="stratified")


def breaks(name):
    """Where a law is not smooth in u; only to place the nodes of a quadrature."""
    if not name.startswith("adaptive"):
        return [0.0, 1.0]
    state = adaptive.init(5) if name.endswith("empty") else some_histogram()
    probs = probabilities(state, stratified=name != "adaptive iid")
    return np.append(0, np.cumsum(np.asarray(probs)))


def quadrature(name):
    rules = [interval(200, *edge) for edge in itertools.pairwise(breaks(name))]
    return [np.concatenate(part) for part in zip(*rules, strict=True)]


COARSE, STEP, FINE = np.linspace(0.003, 0.991, 40), 1e-7, (np.arange(200_000) + 0.5) / 200_000
DRAWS = (600, 49)


@functools.cache
def levels_of(name):
    """λ and 1/p(λ) at the times of every test: of a law one program is compiled."""
    u = {
        "quadrature": quadrature(name)[0],
        "after": COARSE + STEP,
        "before": COARSE - STEP,
        "coarse": COARSE,
        "fine": FINE,
        "drawn": np.asarray(times_of_many(noise_levels.stratified, keys(6, DRAWS[0]))).ravel(),
    }
    cuts = np.cumsum([len(part) for part in u.values()])[:-1]
    found = jax.jit(LAWS[name])(np.concatenate(list(u.values())))
    parts = zip(*(np.split(np.asarray(field), cuts) for field in found), strict=True)
    return {key: type(found)(*part) for key, part in zip(u, parts, strict=True)}


@every_law
def test_every_law_leaves_an_integral_unchanged(name):
    levels, weights = levels_of(name)["quadrature"], quadrature(name)[1]
    assert np.all(levels.inverse_density > 0)
    got = weights @ (bump(levels.log_snr) * levels.inverse_density)
    np.testing.assert_allclose(got, integral(bump), rtol=1e-8)


@every_law
def test_the_density_is_that_of_the_levels(name):
    """p(λ) = |du/dλ|, by finite differences of the levels themselves, and ∫ p dλ = 1."""
    levels = levels_of(name)
    slope = (levels["before"].log_snr - levels["after"].log_snr) / (2 * STEP)
    np.testing.assert_allclose(slope, levels["coarse"].inverse_density, rtol=1e-5)
    order = np.argsort(levels["fine"].log_snr)
    log_snr, inverse_density = (field[order] for field in levels["fine"])
    np.testing.assert_allclose(np.trapezoid(1 / inverse_density, log_snr), 1, atol=2e-4)


def test_sigmoid_law_is_a_sigmoid():
    levels = noise_levels.sigmoid_law(jnp.linspace(0, 1, 40), HIGH, LOW)
    normaliser = np.log1p(np.exp(HIGH)) - np.log1p(np.exp(LOW))
    density = 1 / (1 + np.exp(-np.asarray(levels.log_snr))) / normaliser
    np.testing.assert_allclose(1 / levels.inverse_density, density, rtol=1e-10)


@pytest.mark.float32
@every_law
def test_levels_stay_between_the_ends_in_float32(name):
    u = np.append(np.linspace(0, 1, 4097, dtype=np.float32)[:-1], np.float32(1 - 2**-24))
    levels = jax.jit(LAWS[name])(jnp.asarray(u))
    assert levels.log_snr.dtype == levels.inverse_density.dtype == jnp.float32
    assert np.all((levels.log_snr >= LOW - 1e-4) & (levels.log_snr <= HIGH + 1e-4))
    assert np.all(np.isfinite(levels.inverse_density) & (levels.inverse_density > 0))


@pytest.mark.parametrize("data", [gaussian_data((0.4,), 0.7), SKEWED], ids=["gaussian", "skewed"])
@every_law
def test_every_law_estimates_the_same_bound(name, data):
    """½ ∫ E(ε − E[ε|z])² dλ is what z tells about x at one end and not at the other."""
    if len(data.weights) == 1:
        truth = gaussian_diffusion(data.widths[0], HIGH, LOW)
    else:
        truth = mutual_information(data, HIGH, 4000) - mutual_information(data, LOW)
    n, draws = np.prod(DRAWS), np.random.default_rng(6)
    x = mixture_draws(data, n)[draws.permutation(n)]
    levels = levels_of(name)["drawn"]
    loss = loss_of(data)(x, type(levels)(*map(jnp.asarray, levels)), draws.normal(size=(n, 1)))
    assert within(np.asarray(loss).reshape(DRAWS).mean(1), truth)


@functools.cache
def loss_of(data):
    return jax.jit(lambda *args: losses.diffusion_loss_at(*args, exact_eps(data)))
