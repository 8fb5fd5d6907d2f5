"""Fitting a chain to Gaussian data whose best denoiser, and what it leaves open, are known."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import scales
from vdm import VDM, few_steps
from vdm.likelihoods import discretised, gaussian
from vdm.schedules import cosine

WIDTHS = np.asarray([3.0, 0.5])
LEFT = np.asarray([4.0, -4.0])  # the mean of class 1


class Exact(nn.Module):
    """E[ε|z] of N(cond · LEFT, diag s²); without a condition, of N(0, diag s²)."""

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train):
        gain = self.param("gain", nn.initializers.ones, ())
        a, s = scales(log_snr[:, None])
        mean = 0.0 if cond is None else cond[:, None] * LEFT[None]
        return gain * s * (z - a * mean) / (a**2 * jnp.asarray(WIDTHS[None] ** 2) + s**2)


MODEL = VDM(cosine(4.0, -5.0), Exact(), gaussian(0.1))
PARAMS = {"schedule": {"ends": {}, "shape": {}}, "network": {"gain": jnp.asarray(1.0)}}
NUM = 600
X = np.random.default_rng(0).normal(size=(NUM, 2)) * WIDTHS
NUM_LEVELS = 12
LEVELS = np.linspace(-5.0, 4.0, NUM_LEVELS)


def variance_at(log_snrs):
    """Var[x|z] = s²/(1 + SNR s²), [levels, 2]."""
    return WIDTHS**2 / (1 + np.exp(np.asarray(log_snrs)[:, None]) * WIDTHS**2)


@functools.cache
def fitted(variance):
    return few_steps.fit(
        MODEL, PARAMS, X, variance=variance, num_levels=NUM_LEVELS, head_steps=400, batch_size=NUM
    )


def within_the_error(found, exact, num=NUM):
    """The mean of n squares of normal numbers has the standard error √(2/n) of itself."""
    np.testing.assert_allclose(found, exact, rtol=5 * np.sqrt(2 / num))


def test_moments_are_the_variance_that_is_left():
    found = fitted("table").moments
    np.testing.assert_allclose(found.log_snrs, LEVELS, rtol=1e-12)
    assert found.num == NUM and found.error.dtype == np.float64
    within_the_error(found.error, variance_at(LEVELS[:-1]))


def test_moments_do_not_depend_on_the_batches():
    """But for the noise, of which a batch of another size has other draws."""
    done = []
    found = few_steps.moments(
        MODEL,
        PARAMS,
        X,
        key=jax.random.key(1),
        log_snrs=LEVELS[:3],
        batch_size=250,
        advance=done.append,
    )
    assert done == [1, 2]
    within_the_error(found.error, variance_at(LEVELS[:2]))


def test_tables_are_means_over_what_v_does_not_see():
    error = np.random.default_rng(1).gamma(2.0, size=(4, 3, 5, 2))
    found = few_steps.Moments(np.arange(5.0), error, 40)
    assert few_steps.tables(found, "none") is None
    for level in range(4):
        whole = np.mean(error[level])
        got = {
            name: few_steps.tables(found, name).values[level]
            for name in ("level", "channel", "table")
        }
        np.testing.assert_allclose(got["level"], whole)
        assert got["level"].shape == (1, 1, 1)
        for c in range(2):  # eight more examples with the level's own mean error
            own = np.mean(error[level, :, :, c])
            np.testing.assert_allclose(got["channel"][..., c], (40 * own + 8 * whole) / 48)
        np.testing.assert_allclose(got["table"], (40 * error[level] + 8 * whole) / 48)


@pytest.mark.parametrize("variance", ["none", "level", "table", "head"])
def test_a_fitted_chain_s_bound_is_the_one_that_its_variance_allows(variance):
    """Levels increase between the schedule's ends, and the diffusion term is the closed form.

    With v the exact variance that is ½ Σ log (1 + SNR_0 s²)/(1 + SNR_1 s²), for any placement.
    """
    found = fitted(variance)
    chain = few_steps.place(found, 4)
    few_steps.check(chain, (2,))
    assert chain.num_steps == 4 and not chain.clip_denoised
    assert (chain.log_snrs[0], chain.log_snrs[-1]) == pytest.approx((-5.0, 4.0), abs=1e-12)
    assert np.all(np.isclose(chain.log_snrs[:, None], LEVELS).any(1))
    kappa = np.diff(np.exp(chain.log_snrs))[:, None]
    left = variance_at(chain.log_snrs[:-1])
    expected = {
        "none": 0.5 * np.sum(kappa * left),
        "level": 0.5 * np.sum(2 * np.log1p(kappa[:, 0] * left.mean(1))),
    }.get(variance, 0.5 * np.sum(np.log1p(kappa * left)))
    _, cost = few_steps.best_steps(found.costs, 4)
    assert cost == pytest.approx(expected, rel=0.15 if variance == "none" else 0.05)

    @jax.jit
    def measured(key):
        bound = MODEL.vlb(PARAMS, key, jnp.asarray(X), chain=chain, all_steps=True)
        return jnp.mean(bound.diffusion)

    assert float(measured(jax.random.key(5))) == pytest.approx(cost, rel=0.1)


def test_a_table_is_fitted_to_the_variance_that_is_left():
    chain = few_steps.place(fitted("table"), 4)
    left = variance_at(chain.log_snrs[:-1])
    expected = (NUM * left + 8 * left.mean(1, keepdims=True)) / (NUM + 8)
    within_the_error(chain.variance.values, expected)


def test_a_head_is_fitted_to_the_variance_that_is_left():
    """From v = 1/(1 + SNR), which is nine times too small for the first dimension's noisy end."""
    chain, found = few_steps.place(fitted("head"), 4), {}
    for level in (-4.0, 0.0, 2.0):
        a, s = scales(level)
        z = jnp.asarray(a * X[:200] + s * np.random.default_rng(2).normal(size=(200, 2)))
        eps_hat = MODEL.denoiser(PARAMS)(z, jnp.asarray(level))
        found[level] = np.mean(np.log(chain.v(z, eps_hat, jnp.asarray(level))), 0)
    exact = np.log(variance_at(list(found)))
    np.testing.assert_allclose(np.stack(list(found.values())), exact, atol=0.3)


def test_costs_of_a_head_are_those_of_its_steps():
    """Of a head that says what a table says: those of the table, in batches of two sizes."""

    class Said(nn.Module):
        """log Var[x|z], whatever z is; a parameter that is not needed, for Adam to hold."""

        @nn.compact
        def __call__(self, z, x_hat, log_snr):
            held = 0.0 * self.param("held", nn.initializers.zeros, ())
            square = jnp.asarray(WIDTHS[None] ** 2)
            return jnp.log(square / (1 + jnp.exp(log_snr[:, None]) * square)) + held

    said = few_steps.fit(
        MODEL,
        PARAMS,
        X,
        variance="head",
        head=Said(),
        head_steps=1,
        num_levels=NUM_LEVELS,
        batch_size=400,  # the last batch is smaller than the others
    )
    exact = few_steps.cost_matrix(LEVELS, said.moments.error, variance_at(LEVELS[:-1]))
    np.testing.assert_allclose(said.costs, exact, rtol=1e-6)
    within_the_error(said.moments.error, variance_at(LEVELS[:-1]))


@pytest.mark.parametrize("variance", ["table", "head"])
def test_conditions_reach_the_denoiser(variance):
    """A class that moves the mean by eight widths leaves the error as it is."""
    cond = np.arange(NUM) % 2.0
    moved = X + cond[:, None] * LEFT
    options = {"num_levels": 4, "head_steps": 2, "variance": variance, "batch_size": NUM}
    told = few_steps.fit(MODEL, PARAMS, moved, cond, **options)
    within_the_error(told.moments.error, variance_at(told.moments.log_snrs[:-1]))
    without = few_steps.fit(MODEL, PARAMS, moved, **options)
    assert np.all(without.moments.error[0] > told.moments.error[0] + 1)


def test_a_head_is_fitted_with_every_example_s_own_condition():
    """Told another example's class, x̂ is off by 4 as often as not, in both dimensions."""
    cond = np.arange(NUM) % 2.0
    head = few_steps.fit_head(
        MODEL,
        PARAMS,
        few_steps.VarianceHead(width=4, num_layers=1),
        X + cond[:, None] * LEFT,
        cond,
        key=jax.random.key(0),
        num_steps=150,
        learning_rate=0.03,
    )
    z, level = jnp.asarray(X[:200] * scales(-3.0)[0]), jnp.full(200, -3.0)
    log_v = head.module.apply({"params": head.params}, z, z, level)
    found = np.exp(np.mean(np.asarray(log_v), 0))
    np.testing.assert_allclose(found, variance_at([-3.0])[0], rtol=0.7)


def test_one_call_makes_the_chain_and_the_key_says_which():
    options = {"num_steps": 3, "num_levels": NUM_LEVELS, "variance": "channel", "batch_size": NUM}
    one, same = (few_steps.chain(MODEL, PARAMS, X, **options) for _ in range(2))
    np.testing.assert_array_equal(one.log_snrs, same.log_snrs)
    np.testing.assert_array_equal(one.variance.values, same.variance.values)
    other = few_steps.chain(MODEL, PARAMS, X, key=jax.random.key(1), **options)
    assert np.any(other.variance.values != one.variance.values)


def test_clipping_is_the_likelihood_s_to_say():
    """Integers have a range and are clipped by default; real numbers have none."""
    integers = VDM(cosine(4.0, -5.0), Exact(), discretised(8))
    x = np.random.default_rng(0).integers(0, 8, (50, 2))
    options = {"num_steps": 2, "num_levels": 4, "variance": "level"}
    assert few_steps.chain(integers, PARAMS, x, **options).clip_denoised
    assert not few_steps.chain(integers, PARAMS, x, clip_denoised=False, **options).clip_denoised
    with pytest.raises(ValueError, match="clip_denoised needs a range"):
        few_steps.chain(MODEL, PARAMS, X, clip_denoised=True, **options)


def test_what_cannot_be_fitted():
    with pytest.raises(ValueError, match=r"unknown variance 'tabel'.*Did you mean 'table'"):
        few_steps.chain(MODEL, PARAMS, X, num_steps=2, variance="tabel")
    for variance in ("none", "head"):
        with pytest.raises(ValueError, match=r"at least one example .*: got none"):
            few_steps.chain(MODEL, PARAMS, X[:0], num_steps=2, variance=variance)
    with pytest.raises(ValueError, match="from 1 to 11, the number of levels less one: got 12"):
        few_steps.place(fitted("table"), 12)
