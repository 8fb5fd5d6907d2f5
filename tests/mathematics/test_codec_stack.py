"""The stack of bits and the lattice below the code: inverses, lengths, seeds and scales."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from oracles import backward_transition, scales
from vdm import diffusion, likelihoods
from vdm.codec import chain
from vdm.codec.lattice import Normal, lattice
from vdm.codec.stack import Stack, empty, seed_words

GRID = np.sort(np.random.default_rng(2).uniform(-6.0, 9.0, 9))


def filled(num=4000, seed=0):
    """A stack of bits that nobody will miss."""
    words = np.random.default_rng(seed).integers(1, 2**32, num, np.uint32)
    return Stack(words, seed, 0)


def far_apart(rng, shape):
    """Indices from next to their means to 2⁴⁰ away."""
    return (rng.normal(size=shape) * 2.0 ** rng.integers(0, 40, shape)).astype(np.int64)


def test_whatever_is_pushed_is_popped_and_leaves_nothing():
    rng = np.random.default_rng(0)
    for std, spacing in ((1.0, 0.25), (1e-4, 1e-4), (3.0, 1e-3)):
        p = Normal(rng.normal(size=(5, 7)) * 10.0 ** rng.integers(-6, 4, (5, 7)), std, spacing)
        index = np.rint(p.mean / spacing).astype(np.int64) + far_apart(rng, (5, 7))
        stack = filled()
        before = stack.words
        stack.push_any(index, p)
        assert len(stack.words) > len(before)
        np.testing.assert_array_equal(stack.pop_any(p), index)
        np.testing.assert_array_equal(stack.words, before)


@pytest.mark.parametrize("away", [-9, -8, -7, 0, 7, 8, 9])
def test_the_ends_of_the_reach_are_kept_apart(away):
    p = Normal(np.array([[0.3]]), 1.0, 1.0)
    assert p.reach == 8
    stack = filled(8)
    stack.push_any(np.array([[away]]), p)
    assert stack.pop_any(p) == away


def test_draws_are_taken_back():
    stack = filled()
    before, q = stack.words, Normal(np.linspace(-1, 1, 600).reshape(2, 300), 0.3, 0.05)
    index = stack.draw_near(q)
    assert len(stack.words) < len(before)
    stack.push_near(index, q)
    np.testing.assert_array_equal(stack.words, before)


def test_draws_have_the_distribution_they_are_drawn_from():
    q = Normal(np.full((1, 20_000), 0.123), 0.7, 0.2)
    drawn = (filled(20_000).draw_near(q) * 0.2 - 0.123) / 0.7
    # Rounding to a lattice adds spacing²/12 to the variance.
    variance = 1 + (0.2 / 0.7) ** 2 / 12
    assert abs(drawn.mean()) < 4 * np.sqrt(variance / drawn.size)
    assert abs(drawn.var() - variance) < 4 * variance * np.sqrt(2 / drawn.size)
    smooth = drawn[0] + np.random.default_rng(1).uniform(-1, 1, 20_000) / 7
    expected = stats.norm(0.0, np.sqrt(1 + (2 / 7) ** 2 / 12))
    assert stats.kstest(smooth, expected.cdf).pvalue > 1e-4


def test_a_symbol_takes_minus_log2_of_its_probability():
    rng = np.random.default_rng(3)
    p = Normal(rng.normal(size=(4, 500)), 0.5, 0.1)
    index = np.rint((p.mean + 0.5 * rng.normal(size=p.mean.shape)) / 0.1).astype(np.int64)
    edges = (index[..., None] * 0.1 + np.array([-0.05, 0.05]) - p.mean[..., None]) / 0.5
    mass = np.diff(stats.norm.cdf(edges), axis=-1)
    stack = filled(50)
    before = stack.num_bits
    stack.push_any(index, p)
    np.testing.assert_allclose(stack.num_bits - before, -np.log2(mass).sum(), rtol=1e-4)
    density = stats.norm.logpdf(index * 0.1, p.mean, 0.5).sum(1)
    np.testing.assert_allclose(p.log_density(index), density, rtol=1e-12)


def test_levels_take_their_probabilities_and_come_back():
    rng = np.random.default_rng(4)
    probs = rng.dirichlet(np.ones(6), 50)
    x = (rng.random((50, 1)) < np.cumsum(probs, 1)).argmax(1)
    stack = filled(20)
    before, bits = stack.words, stack.num_bits
    stack.push_levels(x, np.log(probs))
    ideal = -np.log2(probs[np.arange(50), x]).sum()
    np.testing.assert_allclose(stack.num_bits - bits, ideal, rtol=1e-3)
    np.testing.assert_array_equal(stack.pop_levels(np.log(probs)), x)
    np.testing.assert_array_equal(stack.words, before)


@pytest.mark.parametrize("pixels", [60, 13, 1])
def test_data_take_what_the_likelihood_says_in_pieces_of_any_size(pixels, monkeypatch):
    monkeypatch.setattr(chain, "CHUNK", 5 * pixels)
    grid = lattice(np.linspace(-4.0, 1.0, 4), 0.25)
    rng = np.random.default_rng(6)
    x, index = rng.integers(0, 5, (3, 20)), rng.integers(-20, 20, (3, 20))
    stack = filled(60)
    before, bits = stack.words, stack.num_bits
    got = chain.push_data(stack, x, index, 5, grid)
    likelihood, z_0 = likelihoods.discretised(5), index * grid.spacing[0]
    truth = likelihood.log_prob(jnp.asarray(x), jnp.asarray(z_0), jnp.asarray(1.0))
    np.testing.assert_allclose(got, truth, rtol=1e-10)
    np.testing.assert_allclose(stack.num_bits - bits, -got.sum() / np.log(2), rtol=1e-3)
    np.testing.assert_array_equal(chain.pop_data(stack, index, 5, grid), x)
    np.testing.assert_array_equal(stack.words, before)


def test_seed_words_begin_alike_and_are_added_below():
    for seed in (0, 7, 2**40):
        words = seed_words(seed, 50)
        np.testing.assert_array_equal(seed_words(seed, 9), words[:9])
        assert words[0] >= 2**31 and words.dtype == np.uint32
    assert not np.array_equal(seed_words(0, 9), seed_words(1, 9))
    stack, q = empty(7), Normal(np.zeros((1, 64)), 1.0, 0.01)
    assert stack.is_seed() and len(stack.words) == 2
    index = stack.draw_near(q)
    # 64 draws of log2(100 √(2πe)) = 8.7 bits, and no more than a word or four too many.
    assert 64 * 8.2 < 32 * stack.num_seed_words < 64 * 9.2 + 128
    assert not stack.is_seed()
    stack.push_near(index, q)
    assert stack.is_seed()
    np.testing.assert_array_equal(stack.words, seed_words(7, stack.num_seed_words)[::-1])
    assert stack.num_bits == empty(7, stack.num_seed_words).num_bits
    # What is drawn does not depend on when the seed was added.
    at_once = empty(7, stack.num_seed_words)
    np.testing.assert_array_equal(at_once.draw_near(q), index)


@pytest.mark.parametrize("num_steps", [1, 6])
def test_decoding_a_chain_leaves_the_seed_bit_for_bit(num_steps):
    grid = lattice(np.linspace(-4.0, 6.0, num_steps + 1), 0.25)
    x = np.random.default_rng(0).integers(0, 5, (3, 2, 2))
    stack = empty(11)
    chain.encode(stack, x, 5, grid, lambda z, level: chain.Prediction(np.tanh(z)))
    words = stack.words
    again = Stack(words, 11, num_steps + 1)
    got = chain.decode(again, x.shape, 5, grid, lambda z, level: chain.Prediction(np.tanh(z)))
    np.testing.assert_array_equal(got, x)
    np.testing.assert_array_equal(again.words, seed_words(11, stack.num_seed_words)[::-1])


def test_the_chain_has_the_process_means_and_scales():
    grid = lattice(GRID, 0.5)
    rng = np.random.default_rng(1)
    x, z, eps = rng.normal(size=(3, 2, 3))
    down = GRID[::-1]
    np.testing.assert_allclose(grid.encoding(x).mean, scales(down[0])[0] * x, rtol=1e-12)
    np.testing.assert_allclose(grid.encoding(x).std, scales(down[0])[1], rtol=1e-12)
    for step in range(len(GRID) - 1):
        level_s, level_t = down[step], down[step + 1]
        (a_s, s_s), (a_t, s_t) = scales(level_s), scales(level_t)
        q = grid.forward(step, z)
        np.testing.assert_allclose(q.mean, a_t / a_s * z, rtol=1e-10)
        np.testing.assert_allclose(q.std**2, s_t**2 - (a_t / a_s * s_s) ** 2, rtol=1e-8)
        from_z, from_x, variance = backward_transition(level_t, level_s)
        p = grid.backward(step, z, eps)
        np.testing.assert_allclose(p.mean, from_z * z + from_x * (z - s_t * eps) / a_t, rtol=1e-8)
        np.testing.assert_allclose(p.std**2, variance, rtol=1e-8)
        # The library's own forms, which are jax's.
        mean, std = diffusion.posterior(
            jnp.asarray(z),
            jnp.asarray((z - s_t * eps) / a_t),
            *map(jnp.asarray, (level_t, level_s)),
        )
        np.testing.assert_allclose(p.mean, mean, rtol=1e-10)
        np.testing.assert_allclose(p.std, std, rtol=1e-12)
        assert p.spacing == grid.spacing[step] and q.spacing == grid.spacing[step + 1]
    prior = grid.prior((2, 3))
    assert np.all(prior.mean == 0) and prior.std == 1 and prior.spacing == grid.spacing[-1]


def test_a_levels_spacing_is_a_share_of_its_narrower_distribution():
    grid = lattice(GRID, 0.5)
    z = np.zeros((1, 1))
    chosen = [grid.encoding(z), *(grid.forward(i, z) for i in range(8))]
    stored = [*(grid.backward(i, z, z) for i in range(8)), grid.prior((1, 1))]
    for q, p in zip(chosen, stored, strict=True):
        np.testing.assert_allclose(q.spacing, 0.5 * min(q.std, p.std))
        assert q.spacing == p.spacing
        assert p.reach >= 16 and q.reach * q.spacing >= 8 * q.std
