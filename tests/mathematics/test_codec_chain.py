"""The lossless code of a chain: what comes back, what it costs, and what its reader must have."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from oracles import backward_transition, within
from vdm import VDM, few_steps, likelihoods, networks, schedules
from vdm.codec import Codec, DamagedError, chain as coding
from vdm.codec.lattice import LARGEST_REACH, Normal, lattice
from vdm.codec.stack import Stack

DIGITS = load_digits().images.astype(np.uint8)[:, 2:4, 3:6, None]
SHAPE = (2, 3, 1)
LABELS = load_digits().target
LEVELS = np.array([-5.0, -1.0, 0.5, 4.0])
LN2 = math.log(2.0)


def model_of(num_classes=None):
    network = networks.MLP(width=8, num_blocks=1, num_classes=num_classes)
    model = VDM(schedules.linear(4.0, -5.0), network, likelihoods.discretised(17))
    cond = None if num_classes is None else LABELS[:2]
    params = model.init(jax.random.key(0), DIGITS[:2], cond)
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), params)


def chain_of(variance, clip_denoised=False, levels=LEVELS):
    """A chain whose numbers are drawn at random, not fitted."""
    rng, num = np.random.default_rng(2), len(levels) - 1
    shapes = {"level": (1, 1, 1), "channel": (1, 1, 1), "table": SHAPE}
    if variance == "none":
        return few_steps.Chain(levels, None, clip_denoised)
    if variance == "head":
        module = few_steps.VarianceHead(width=4, num_layers=1, levels=17)
        z = jnp.zeros((1, *SHAPE))
        params = module.init(jax.random.key(0), z, z, jnp.zeros(1))["params"]
        params = jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape), params)
        return few_steps.Chain(levels, few_steps.Head(module, params), clip_denoised)
    table = rng.gamma(1.0, 0.3, (num, *shapes[variance]))
    return few_steps.Chain(levels, few_steps.Table(table), clip_denoised)


@pytest.mark.parametrize("variance", few_steps.VARIANCES)
@pytest.mark.parametrize("num_classes", [None, 10])
def test_images_come_back_with_every_variance(variance, num_classes):
    model, params = model_of(num_classes)
    chain = chain_of(variance, clip_denoised=True)
    codec = model.codec(params, SHAPE, chain=chain, batch_size=7)
    for n in (1, 23):
        cond = None if num_classes is None else LABELS[:n]
        got = codec.encode(DIGITS[:n], cond)
        np.testing.assert_array_equal(codec.decode(got.words, n, cond), DIGITS[:n])
        # The same code but for the clipping.
        other = model.codec(
            params, SHAPE, chain=dataclasses.replace(chain, clip_denoised=False), batch_size=7
        )
        assert other.fingerprint(cond) != codec.fingerprint(cond)


def test_any_variance_comes_back():
    rng = np.random.default_rng(5)
    for high in (1e-9, 1.0, 1e3, 1e12, 1e30):
        table = few_steps.Table(high * rng.gamma(0.3, 1.0, (3, *SHAPE)))
        table.values[1] = 0.0
        model, params = model_of()
        codec = model.codec(params, SHAPE, chain=few_steps.Chain(LEVELS, table), batch_size=4)
        got = codec.encode(DIGITS[:9])
        np.testing.assert_array_equal(codec.decode(got.words, 9), DIGITS[:9])


@pytest.mark.parametrize("variance", ["table", "head"])
def test_the_mean_cost_is_the_bound(variance):
    n, (model, params) = 1500, model_of()
    chain = chain_of(variance, clip_denoised=True)
    codec = model.codec(params, SHAPE, chain=chain, batch_size=256, ramp=0, spacing=1 / 8)
    got = codec.encode(DIGITS[:n])
    vlb = model.vlb(params, jax.random.key(3), DIGITS[:n], chain=chain, all_steps=True)
    truth = np.asarray(vlb.prior + vlb.reconstruction + vlb.diffusion) / LN2
    # Of other draws of the noise for the same images.
    assert within(got.ideal_bits - truth, 0.0, 4)
    assert within(got.bound_bits - truth, 0.0, 4)
    assert abs(got.net_bits / got.ideal_bits.sum() - 1) < 0.01
    without = few_steps.Chain(LEVELS, None, True)
    vlb = model.vlb(params, jax.random.key(3), DIGITS[:n], chain=without, all_steps=True)
    assert not within(got.ideal_bits - np.asarray(sum(vlb)) / LN2, 0.0, 8)


def test_no_variance_and_even_levels_are_the_code_of_num_steps():
    model, params = model_of()
    given = {"batch_size": 7, "clip_denoised": True}
    plain = model.codec(params, SHAPE, num_steps=5, **given)
    even = few_steps.Chain(plain.log_snrs)
    zeros = dataclasses.replace(even, variance=few_steps.Table(np.zeros((5, 1, 1, 1))))
    truth = plain.encode(DIGITS[:20])
    for chain in (even, zeros):
        got = model.codec(params, SHAPE, chain=chain, **given).encode(DIGITS[:20])
        np.testing.assert_array_equal(got.words, truth.words)
        np.testing.assert_allclose(got.ideal_bits, truth.ideal_bits, rtol=1e-12)
        np.testing.assert_allclose(got.bound_bits, truth.bound_bits, rtol=1e-12)
    assert model.codec(params, SHAPE, chain=even, **given).fingerprint() == plain.fingerprint()


def test_one_changed_number_of_a_chain_is_seen_beforehand():
    model, params = model_of()
    chain = chain_of("table", levels=np.linspace(-5.0, 4.0, 31))
    codec = model.codec(params, SHAPE, chain=chain)
    words, prints = codec.encode(DIGITS[:9]).words, {codec.fingerprint()}
    for place in ((0, 0, 0, 0), (3, 1, 2, 0), (29, 1, 0, 0)):
        values = np.array(chain.variance.values)
        values[place] = np.nextafter(np.float32(values[place]), np.float32(9))
        changed = dataclasses.replace(chain, variance=few_steps.Table(values))
        prints.add(model.codec(params, SHAPE, chain=changed).fingerprint())
    assert len(prints) == 4
    other = dataclasses.replace(chain, variance=few_steps.Table(1.001 * chain.variance.values))
    with pytest.raises(DamagedError):
        model.codec(params, SHAPE, chain=other).decode(words, 9)


def test_the_reverse_step_is_as_wide_as_x_is_uncertain():
    grid, rng = lattice(LEVELS, 0.25), np.random.default_rng(0)
    z, eps, v = rng.normal(size=(3, 2, 5))
    for step, (level_t, level_s) in enumerate(zip(LEVELS[-2::-1], LEVELS[:0:-1], strict=True)):
        # The variance of z_s given z_t where x is N(x̂, v): that of x's share joins the step's.
        _, from_x, variance = backward_transition(level_t, level_s)
        p = grid.backward(step, z, eps, np.square(v))
        np.testing.assert_allclose(np.square(p.std), variance + (from_x * v) ** 2, rtol=1e-10)
        np.testing.assert_array_equal(p.mean, grid.backward(step, z, eps).mean)
        assert p.spacing == grid.backward(step, z, eps).spacing


def test_a_normal_with_widths_of_its_own_is_coded_under_them():
    rng = np.random.default_rng(3)
    std = rng.gamma(2.0, 0.3, (4, 300)) + 0.1
    p = Normal(rng.normal(size=std.shape), std, 0.1)
    index = np.rint((p.mean + std * rng.normal(size=std.shape)) / 0.1).astype(np.int64)
    edges = (index[..., None] * 0.1 + np.array([-0.05, 0.05]) - p.mean[..., None]) / std[..., None]
    mass = np.diff(stats.norm.cdf(edges), axis=-1)
    stack = Stack(np.arange(1, 60, dtype=np.uint32), 0, 0)
    before, bits = stack.words, stack.num_bits
    stack.push_any(index, p)
    np.testing.assert_allclose(stack.num_bits - bits, -np.log2(mass).sum(), rtol=1e-3)
    np.testing.assert_array_equal(stack.pop_any(p), index)
    np.testing.assert_array_equal(stack.words, before)
    density = stats.norm.logpdf(index * 0.1, p.mean, std).sum(1)
    np.testing.assert_allclose(p.log_density(index), density, rtol=1e-12)
    assert p.reach == math.ceil(8 * std.max() / 0.1)
    assert Normal(p.mean, 1e9 * std, 0.1).reach == LARGEST_REACH


def test_the_cost_of_a_step_is_the_divergence_of_two_normals():
    grid, rng = lattice(LEVELS, 0.25), np.random.default_rng(4)
    x, z, eps_hat = rng.normal(size=(3, 2, 3))
    v = rng.gamma(1.0, 0.5, (2, 3))
    for step, (level_t, level_s) in enumerate(zip(LEVELS[-2::-1], LEVELS[:0:-1], strict=True)):
        from_z, from_x, variance = backward_transition(level_t, level_s)
        p = grid.backward(step, z, eps_hat, v)
        away = np.square(from_z * z + from_x * x - p.mean)
        each = np.log(np.square(p.std) / variance) + (variance + away) / np.square(p.std) - 1.0
        got = coding._step_kl(grid, step, x, z, coding.Prediction(eps_hat, v))
        np.testing.assert_allclose(got, 0.5 * each.sum(1), rtol=1e-9)


def test_a_codec_has_either_steps_or_a_chain(unchecked):
    model, params = model_of()
    chain = chain_of("table")
    with pytest.raises(ValueError, match="num_steps=None and no chain"):
        model.codec(params, SHAPE)
    with pytest.raises(ValueError, match="num_steps=4 and a chain of 3 steps"):
        model.codec(params, SHAPE, num_steps=4, chain=chain)
    with pytest.raises(ValueError, match="a table for 3 steps of examples"):
        model.codec(params, (5, 3, 1), chain=chain)


@pytest.mark.parametrize("value", [-1e-3, np.inf, np.nan])
def test_a_variance_must_be_one(value):
    codec = Codec(
        lambda z, log_snr, cond: 0.5 * z,
        LEVELS,
        likelihoods.discretised(17),
        SHAPE,
        variance_fn=lambda z, eps_hat, log_snr: z * 0.0 + value,
    )
    with pytest.raises(ValueError, match="a variance is negative or not finite at λ = "):
        codec.encode(DIGITS[:2])
