"""Lossless coding: what comes back, what it costs beside the bound, and what is left.

Data on a few levels with their exact denoiser have a bound that quadrature knows, so the code's
mean length has an oracle; real digits go through networks with random parameters.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from oracles import (
    entropy,
    exact_eps,
    expectation,
    grid_of_levels,
    normal,
    scales,
    skewed_probs,
    table,
    within,
)
from vdm import VDM, likelihoods, networks, samplers, schedules
from vdm.codec import Codec, DamagedError, batch_sizes

LN2 = np.log(2.0)
LEVELS = 4
PROBS = skewed_probs((LEVELS, LEVELS), seed=3)
EXACT = exact_eps(table(PROBS, LEVELS))
DIGITS = load_digits().images.astype(np.uint8)[..., None]


def toy(num_steps=10, ends=(-5.0, 7.0), eps_fn=EXACT, **options):
    """A code for two pixels of four levels by their exact denoiser."""
    log_snrs = np.linspace(*ends, num_steps + 1)
    options = {"batch_size": 256, "ramp": 0, "spacing": 1 / 8, **options}
    return Codec(
        lambda z, log_snr, cond: eps_fn(z, log_snr),
        log_snrs,
        likelihoods.discretised(LEVELS),
        (2,),
        **options,
    )


def toy_images(n, seed=0):
    index = np.random.default_rng(seed).choice(PROBS.size, n, p=PROBS.ravel())
    return grid_of_levels(2, LEVELS)[index], index


@functools.cache
def digits_model(num_classes=None):
    """A network of random parameters, not at all like the digits."""
    network = networks.MLP(width=16, num_blocks=1, num_classes=num_classes)
    model = VDM(schedules.linear(8.0, -6.0), network, likelihoods.discretised(17))
    cond = None if num_classes is None else np.arange(2)
    params = model.init(jax.random.key(0), DIGITS[:2], cond)
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), params)


def digits_codec(num_steps=3, num_classes=None, **options):
    model, params = digits_model(num_classes)
    return model.codec(params, (8, 8, 1), num_steps=num_steps, **{"batch_size": 7, **options})


@functools.cache
def exact_bound(num_steps, ends=(-5.0, 7.0)):
    """The T-step bound of every image of the toy in bits, [16], by quadrature."""
    x = (2 * grid_of_levels(2, LEVELS) + 1) / LEVELS - 1
    log_snrs = np.linspace(*ends[::-1], num_steps + 1)
    rule = normal(61, 2, 6.5)
    values = (2 * np.arange(LEVELS) + 1) / LEVELS - 1
    a, s = scales(log_snrs[0])

    def reconstruction(x, eps):
        logits = -0.5 * ((a * (x[..., None] - values[None, None]) + s * eps[..., None]) / s) ** 2
        chosen = -0.5 * eps**2
        return jnp.sum(jax.nn.logsumexp(logits, -1) - chosen, -1)

    a_1, s_1 = scales(log_snrs[-1])
    total = np.sum(0.5 * (a_1**2 * x**2 + s_1**2 - 1) - np.log(s_1), 1)
    total += expectation(reconstruction, x, rule)
    eps, weights = rule
    for level_s, level_t in itertools.pairwise(log_snrs):
        a, s = scales(float(level_t))
        z = a * x[:, None] + s * eps[None]
        eps_hat = np.asarray(EXACT(z.reshape(-1, 2), level_t)).reshape(z.shape)
        error = np.sum((eps[None] - eps_hat) ** 2, -1) @ weights
        total += 0.5 * np.expm1(level_s - level_t) * error
    return total / LN2


@pytest.mark.parametrize(("num_steps", "ends"), [(1, (-1.0, 0.5)), (30, (-5.0, 7.0))])
def test_a_codes_mean_length_is_the_bound(num_steps, ends):
    x, index = toy_images(3000)
    got = toy(num_steps, ends).encode(x)
    truth = exact_bound(num_steps, ends)[index]
    # Of the same path: the coder loses nothing that shows.
    assert abs(got.net_bits / got.ideal_bits.sum() - 1) < 0.005
    # In the mean over paths: what the lattice and its draws do to them does not show either.
    assert within(got.ideal_bits - truth, 0.0, 4)
    assert within(got.bound_bits - truth, 0.0, 4)


def test_the_mean_length_meets_the_entropy_but_for_the_steps():
    num, num_steps = 6000, 40
    x, index = toy_images(num, seed=1)
    got = toy(num_steps, batch_size=512).encode(x)
    gap = np.sum(PROBS.ravel() * exact_bound(num_steps)) - entropy(PROBS) / LN2
    assert 0.1 < gap < 0.6  # of about 4 bits: the price of 40 steps
    information = -np.log2(PROBS.ravel()[index])
    error = np.std(got.ideal_bits - information) / np.sqrt(num)
    assert abs(got.net_bits / num - information.mean() - gap) < 4 * error + 0.005


@pytest.mark.parametrize("spacing", [1.0, 0.5, 1 / 32])
def test_a_wide_lattice_costs_what_its_noise_does(spacing):
    # Rounding adds spacing²/12 to the unit variance of every step, whose density is coded.
    got = toy(30, spacing=spacing).encode(toy_images(2000)[0])
    lost = got.net_bits / got.ideal_bits.sum() - 1
    assert -(spacing**2) / 4 - 0.005 < lost < 0.005


@pytest.mark.parametrize("n", [1, 6, 7, 8, 23])
@pytest.mark.parametrize("ramp", [0, 2])
def test_real_digits_come_back_whatever_fills_a_batch(n, ramp):
    codec = digits_codec(ramp=ramp)
    got = codec.encode(DIGITS[:n])
    back = codec.decode(got.words, n)
    assert back.dtype == np.int64
    np.testing.assert_array_equal(back, DIGITS[:n])
    assert got.words.dtype == np.uint32
    assert got.ideal_bits.shape == got.bound_bits.shape == (n,)
    # The words are the seed and the images, and no more than the last word is not filled.
    assert 0 <= 32 * len(got.words) - got.net_bits - got.seed_bits < 32


@pytest.mark.parametrize("kind", ["noise", "darkest", "lightest", "checks"])
def test_images_unlike_any_come_back(kind):
    n = 9
    images = {
        "noise": np.random.default_rng(0).integers(0, 17, (n, 8, 8, 1)),
        "darkest": np.zeros((n, 8, 8, 1), np.int32),
        "lightest": np.full((n, 8, 8, 1), 16, np.uint8),
        "checks": (16 * (np.indices((n, 8, 8, 1)).sum(0) % 2)).astype(np.int16),
    }[kind]
    codec = digits_codec()
    np.testing.assert_array_equal(codec.decode(codec.encode(images).words, n), images)


def test_any_shape_number_of_levels_and_of_steps_comes_back():
    rng = np.random.default_rng(5)
    for _ in range(12):
        shape = tuple(int(size) for size in rng.integers(1, 4, rng.integers(1, 4)))
        levels, num_steps = int(rng.choice([2, 3, 17, 256])), int(rng.integers(1, 9))
        n, high = int(rng.integers(1, 12)), float(rng.uniform(1.0, 13.3))
        log_snrs = np.sort(rng.uniform(-8.0, high, num_steps + 1))
        codec = Codec(
            lambda z, log_snr, cond: 0.8 * jnp.sin(3 * z) + 0.1 * log_snr,
            log_snrs,
            likelihoods.discretised(levels),
            shape,
            batch_size=int(rng.integers(1, 6)),
            ramp=int(rng.integers(0, 4)),
            spacing=float(rng.uniform(0.05, 1.0)),
            seed=int(rng.integers(0, 2**31)),
        )
        images = rng.integers(0, levels, (n, *shape))
        np.testing.assert_array_equal(codec.decode(codec.encode(images).words, n), images)


def test_a_denoiser_that_is_far_off_costs_bits_and_loses_nothing():
    x = toy_images(20)[0]
    for far in (30.0, 1e9, 3e37):
        codec = toy(5, eps_fn=lambda z, log_snr, far=far: far * jnp.cos(5.0 * z))
        got = codec.encode(x)
        np.testing.assert_array_equal(codec.decode(got.words, 20), x)
        # A latent that a Gaussian would give thousands of bits takes 24 for the end and up to 52.
        assert got.net_bits < 20 * 2 * 6 * 77 < got.ideal_bits.sum()


def test_conditions_go_with_their_images():
    n, labels = 12, load_digits().target[:12]
    codec = digits_codec(num_classes=10, ramp=3)
    got = codec.encode(DIGITS[:n], labels)
    np.testing.assert_array_equal(codec.decode(got.words, n, labels), DIGITS[:n])
    with pytest.raises(DamagedError):
        codec.decode(got.words, n, (labels + 1) % 10)
    assert got.net_bits != codec.encode(DIGITS[:n], np.zeros(n, np.int64)).net_bits


def test_a_condition_that_tells_the_image_leaves_nothing_to_code():
    x = toy_images(150)[0]
    encoded = (2.0 * x + 1) / LEVELS - 1

    def eps_fn(z, log_snr, cond):
        a, s = scales(log_snr)
        return (z - a * cond) / s

    codec = dataclasses.replace(toy(20, batch_size=32, ramp=8), eps_fn=eps_fn)
    got = codec.encode(x, encoded)
    np.testing.assert_array_equal(codec.decode(got.words, 150, encoded), x)
    # The prior's divergence is what is left: 2 · ½ sigmoid(−5) (x² − 1) + 2 · ½ softplus(−5).
    assert np.all(np.abs(got.bound_bits) < 0.02)
    assert abs(got.net_bits / 150) < 0.1 < 1.0 < codec.encode(x, encoded[::-1]).net_bits / 150


def test_only_an_equal_codec_reads_its_words():
    n, codec = 5, digits_codec()
    words = codec.encode(DIGITS[:n]).words
    model, params = digits_model()
    network = jax.tree.map(lambda p: p * np.float32(1 + 1e-6), params["network"])
    nearly = model.codec({**params, "network": network}, (8, 8, 1), num_steps=3, batch_size=7)
    others = [nearly, digits_codec(4), *_replaced(codec, seed=1, spacing=0.2, ramp=0)]
    for other in others:
        with pytest.raises(DamagedError):
            other.decode(words, n)
    for wrong in (4, 6):
        with pytest.raises(DamagedError):
            codec.decode(words, wrong)
    prints = [c.fingerprint() for c in (codec, digits_codec(), nearly, others[1], others[3])]
    assert prints[0] == prints[1] and len(set(prints)) == 4


def _replaced(codec, **fields):
    return [dataclasses.replace(codec, **{name: value}) for name, value in fields.items()]


def test_a_changed_word_is_noticed():
    n, codec = 6, digits_codec()
    words = codec.encode(DIGITS[:n]).words
    words.flags.writeable = False  # as numpy.frombuffer gives them
    np.testing.assert_array_equal(codec.decode(words, n), DIGITS[:n])
    for place in np.linspace(0, len(words) - 1, 9).astype(int):
        for bit in (0, 17):
            changed = words.copy()
            changed[place] ^= np.uint32(1 << bit)
            with pytest.raises(DamagedError):
                codec.decode(changed, n)
    for changed in (words[:-1], words[:0], np.append(words, np.uint32(9)), words[::-1]):
        with pytest.raises(DamagedError):
            codec.decode(changed, n)
    with pytest.raises(DamagedError, match="expected at least one word, the last one not zero"):
        codec.decode(np.append(words, np.uint32(0)), n)


def test_small_batches_first_need_fewer_seed_bits():
    codec = digits_codec(batch_size=32)
    ramped, full = (_replaced(codec, ramp=ramp)[0].encode(DIGITS[:64]) for ramp in (8, 0))
    assert ramped.seed_bits < full.seed_bits / 10
    # One image's first draw is z_0 alone: 64 times log2(σ_0 √(2πe)/δ_0).
    grid = codec.lattice()
    first = 64 * np.log2(grid.sigma[0] / grid.spacing[0] * np.sqrt(2 * np.pi * np.e))
    assert first < _replaced(codec, seed=1)[0].encode(DIGITS[:1]).seed_bits < 3 * first


def test_progress_is_told_after_every_batch():
    x, _ = toy_images(9)
    codec, told = toy(num_steps=1, batch_size=4), []
    encoded = codec.encode(x, advance=told.append)
    assert told == [4, 8, 9]
    told.clear()
    np.testing.assert_array_equal(codec.decode(encoded.words, 9, advance=told.append), x)
    assert told == [1, 5, 9]


@pytest.mark.parametrize("num", [1, 2, 9, 100])
@pytest.mark.parametrize("largest", [1, 4, 16])
@pytest.mark.parametrize("ramp", [0, 1, 8])
def test_batches_hold_every_image_once(num, largest, ramp):
    sizes = batch_sizes(num, largest, ramp)
    assert sum(sizes) == num and min(sizes) >= 1 and max(sizes) <= largest
    before = np.cumsum([0, *sizes])[:-1]
    if ramp:
        assert all(size <= max(1, done / ramp) for size, done in zip(sizes, before, strict=True))
    else:
        assert len(sizes) == -(-num // largest)


def test_the_model_codes_on_its_own_schedule():
    model, params = digits_model()
    codec = digits_codec(5)
    grid = samplers.grids.uniform_in_time(model.log_snr(params), 5)
    np.testing.assert_array_equal(codec.log_snrs, grid)
    assert digits_codec(5, clip_denoised=True).fingerprint() != codec.fingerprint()
    # The paths differ, and what they cost by some 330 bits an image: the mean over 280 of them is
    # lower by about five of its standard errors.
    clipped, plain = (
        digits_codec(5, clip_denoised=clip, batch_size=64).encode(DIGITS[:280]).bound_bits
        for clip in (True, False)
    )
    assert np.mean(clipped) < np.mean(plain)


def test_a_guided_models_code_is_guided():
    network = networks.MLP(width=4, num_blocks=1, num_classes=3, optional_cond=True)
    model = VDM(schedules.linear(4.0, -4.0), network, likelihoods.discretised(LEVELS))
    x, cond = toy_images(3)[0], np.arange(3)
    params = model.init(jax.random.key(0), x, cond)
    params = jax.tree.map(lambda p: p + 0.3 * jnp.ones_like(p), params)
    prints = {
        model.codec(params, (2,), num_steps=2, guidance=guidance).fingerprint(cond)
        for guidance in (None, 1.5, 3.0)
    }
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("images", "cond", "error", "message"),
    [
        (np.zeros((3, 2)), None, TypeError, "takes integers: got float64"),
        (np.zeros((3, 3), int), None, ValueError, r"shape \[n, 2\]: got \[3, 3\]"),
        (np.zeros((0, 2), int), None, ValueError, "at least one image to encode: got none"),
        (np.full((3, 2), 4), None, ValueError, "hold 0..3: got values from 4 to 4"),
        (np.full((3, 2), -1), None, ValueError, "from -1 to -1"),
        (np.zeros((3, 2), int), np.zeros(2), ValueError, "got 2 for 3 images"),
    ],
)
def test_images_that_cannot_be_coded_are_refused(images, cond, error, message, unchecked):
    with pytest.raises(error, match=message):
        toy().encode(images, cond)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"likelihood": likelihoods.gaussian(0.1)}, TypeError, "discretised"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1: got 0"),
        ({"ramp": -1}, ValueError, "ramp must be a whole number of at least 0: got -1"),
        ({"seed": 0.5}, ValueError, "seed must be"),
        ({"spacing": 0.0}, ValueError, "spacing must be above 0 and at most 1: got 0.0"),
        ({"spacing": 1.5}, ValueError, "got 1.5"),
        ({"log_snrs": np.zeros(1)}, ValueError, "at least two noise levels"),
        ({"log_snrs": np.array([1.0, -1.0])}, ValueError, "got 1.0 before -1.0"),
        ({"log_snrs": np.array([-1.0, np.nan])}, ValueError, "must be finite: got nan"),
        ({"log_snrs": np.array([-5.0, 5.0, 5.0 + 1e-9])}, ValueError, "next to λ = 5.0"),
    ],
)
def test_codes_that_cannot_be_are_refused(fields, error, message, unchecked):
    with pytest.raises(error, match=message):
        _ = dataclasses.replace(toy(), **fields)


def test_a_denoiser_must_be_finite():
    codec = toy(eps_fn=lambda z, log_snr: z / 0.0)
    with pytest.raises(ValueError, match="not finite at λ = "):
        codec.encode(toy_images(3)[0])
