"""A padded set has the numbers of its own points, computed by themselves, and no others."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vdm
from oracles import keys
from vdm import VDM, few_steps, sets
from vdm.condition import Conditions, as_arrays, drop_condition
from vdm.few_steps.chain import Chain, Table
from vdm.likelihoods import discretised, gaussian
from vdm.networks import SetTransformer, from_apply
from vdm.noise_levels import NoiseLevels
from vdm.schedules import linear

NUMBERS = np.asarray([3, 6, 1, 4])
MASK = sets.of_lengths(NUMBERS, 6)
RNG = np.random.default_rng(0)
X = np.where(MASK[..., None], RNG.normal(size=(4, 6, 2)) * [1.0, 3.0] + [0.5, -1.0], 0.0)
COND = Conditions(mask=MASK)
KEYS = keys(5, 4)
LIKELIHOOD = gaussian(0.05, mean=(0.4, -0.8), std=(1.1, 2.5))


def pointwise(params, z, log_snr, cond, *, train, key):
    return 0.3 * jnp.tanh(z * jnp.asarray([[[1.0, -0.5]]]) + 0.1 * log_snr[:, None, None])


# A network that takes every point by itself needs no mask: without padding there is none.
PLAIN = VDM(linear(6.0, -5.0), from_apply(lambda *given: {}, pointwise), LIKELIHOOD)
NO_PARAMS = PLAIN.init(jax.random.key(0), X)
CHAIN = Chain(jnp.asarray([-5.0, -1.0, 2.0, 6.0]), Table(np.asarray([[[0.9, 0.5]]] * 3)))

NETWORK = SetTransformer(
    channels=16, num_blocks=2, num_heads=2, fourier_exponents=(0,), distances=True, dtype="float64"
)
MODEL = VDM(linear(6.0, -5.0), NETWORK, LIKELIHOOD, prediction="v")


def perturbed(params):
    """Return parameters none of which is zero, as some are at the start."""
    leaves, tree = jax.tree.flatten(params)
    fresh = [
        leaf + 0.2 * jax.random.normal(jax.random.key(i), leaf.shape)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, fresh)


def of_network(model, x, cond):
    params = model.init(jax.random.key(0), x, cond)
    return {**params, "network": perturbed(params["network"])}


PARAMS = of_network(MODEL, X, COND)

# What a model says of sets, as functions of model, parameters, keys, x and condition.
NUMBERS_OF = {
    "bound": lambda m, p, k, x, c: jnp.stack(m.vlb(p, k, x, c)),
    "steps": lambda m, p, k, x, c: jnp.stack(m.vlb(p, k, x, c, num_steps=4)),
    "a step of a chain": lambda m, p, k, x, c: jnp.stack(m.vlb(p, k, x, c, chain=CHAIN)),
    "chain": lambda m, p, k, x, c: jnp.stack(m.vlb(p, k, x, c, chain=CHAIN, all_steps=True)),
    "path": lambda m, p, k, x, c: m.path_weights(p, k, x, c, chain=CHAIN)[None],
    "ode": lambda m, p, k, x, c: m.log_likelihood(p, k, x, c, steps=6)[None],
    "adaptive ode": lambda m, p, k, x, c: m.log_likelihood(p, k, x, c)[None],
}
# An adaptive solve of the network takes longest, and sees what that of even steps sees.
OF_A_NETWORK = [
    pytest.param(name, marks=[pytest.mark.long] if name == "adaptive ode" else [])
    for name in NUMBERS_OF
]
SAMPLES_OF = {
    "ancestral": {"num_steps": 3},
    "heun": {"num_steps": 3, "sampler": "heun"},
    "drawn": {"num_steps": 3, "final": "draw"},
    "chain": {"chain": CHAIN},
}


@functools.cache  # for all tests of a model: tracing takes longer than they do
def compiled(name, model):
    return jax.jit(lambda *given: NUMBERS_OF[name](model, *given))


def sampled(options, model, shape):
    return jax.jit(lambda p, k, c: model.sample(p, k, shape, cond=c, **options))


@pytest.mark.parametrize("name", NUMBERS_OF)
def test_a_padded_set_has_the_numbers_of_its_points_alone(name):
    found = compiled(name, PLAIN)(NO_PARAMS, KEYS, X, COND)
    for i, n in enumerate(NUMBERS):
        alone = compiled(name, PLAIN)(NO_PARAMS, KEYS[i : i + 1], X[i : i + 1, :n], None)
        # An adaptive solver takes other steps with more coordinates, within its tolerance.
        rtol = 1e-4 if name == "adaptive ode" else 1e-11
        np.testing.assert_allclose(found[:, i], alone[:, 0], rtol=rtol)


@pytest.mark.parametrize("options", SAMPLES_OF.values(), ids=SAMPLES_OF)
def test_a_padded_sample_is_that_of_its_points_alone(options):
    found = sampled(options, PLAIN, X.shape)(NO_PARAMS, KEYS, COND)
    assert np.all(np.asarray(found)[~MASK] == 0)
    for i, n in enumerate(NUMBERS):
        alone = sampled(options, PLAIN, (1, int(n), 2))(NO_PARAMS, KEYS[i : i + 1], None)
        np.testing.assert_allclose(found[i, :n], alone[0], rtol=1e-11)


@pytest.mark.parametrize("name", OF_A_NETWORK)
def test_what_is_in_the_padding_changes_no_bit(name):
    fn = compiled(name, MODEL)
    one = fn(PARAMS, KEYS, X, COND)
    for garbage in (7.0, 1e30, np.nan):
        other = fn(PARAMS, KEYS, np.where(MASK[..., None], X, garbage), COND)
        np.testing.assert_array_equal(one, other)
    assert np.all(np.isfinite(one))


@pytest.mark.float32
@pytest.mark.parametrize("name", OF_A_NETWORK)
def test_however_much_padding_there_was_trimmed_sets_have_the_same_bits(name):
    model = dataclasses.replace(MODEL, network=NETWORK.clone(dtype="float32"))
    fn, found = compiled(name, model), []
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
    for extra in (0, 10, 20):
        wide = np.full((4, 6 + extra, 2), np.nan, np.float32)
        there = np.zeros(wide.shape[:2], bool)
        wide[:, extra // 2 : 6 + extra // 2], there[:, extra // 2 : 6 + extra // 2] = X, MASK
        x, mask = sets.trimmed(wide, there)
        found.append(fn(params, KEYS, x, Conditions(mask=mask)))
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


@pytest.mark.parametrize("name", ["bound", "chain", "path", "ode"])
def test_padding_that_is_not_trimmed_changes_rounding_alone(name):
    x, mask = np.pad(X, ((0, 0), (0, 9), (0, 0))), np.pad(MASK, ((0, 0), (0, 9)))
    fn, wide = compiled(name, MODEL), Conditions(mask=mask)
    # The solve of an untrained network, which has logarithms of distances, lets it grow.
    rtol = 1e-5 if name == "ode" else 1e-11
    found = fn(PARAMS, KEYS, x, wide), fn(PARAMS, KEYS, X, COND)
    np.testing.assert_allclose(*found, rtol=rtol)
    one_key = jax.random.key(3)
    found = fn(PARAMS, one_key, x, wide), fn(PARAMS, one_key, X, COND)
    np.testing.assert_allclose(*found, rtol=rtol)


def test_the_network_takes_points_in_any_order():
    order = np.stack([RNG.permutation(6) for _ in X])
    z, field = X.copy(), RNG.normal(size=(4, 6, 3))
    network = NETWORK.clone(cond_channels=3, num_classes=3, cond_dim=1)
    label, vector = np.asarray([0, 2, 1, 0]), RNG.normal(size=(4, 1))
    log_snr = jnp.asarray([1.0, -2.0, 0.0, 4.0])
    cond = as_arrays(Conditions(label, vector, field, MASK))
    params = perturbed(network.init(jax.random.key(0), jnp.asarray(z), log_snr, cond)["params"])

    def moved(part):
        return np.take_along_axis(part, order.reshape(4, 6, *(1,) * (part.ndim - 2)), axis=1)

    def out(z, cond):
        return network.apply({"params": params}, jnp.asarray(z), log_snr, cond)

    there = out(z, cond)
    other = as_arrays(Conditions(label, vector, moved(field), moved(MASK)))
    np.testing.assert_allclose(out(moved(z), other), moved(np.asarray(there)), atol=1e-12)
    assert np.abs(there[0, 0] - there[0, 1]).max() > 0.1  # not all points are alike
    # The other points matter, and how many there are: of equal ones attention takes the same mean.
    z[:, 1] += 1.0
    assert np.abs(out(z, cond) - there)[0, 0].max() > 1e-3
    equal = jnp.ones((1, 6, 2))
    of_two, of_six = (
        network.apply(
            {"params": params},
            equal,
            log_snr[:1],
            as_arrays(
                Conditions(label[:1], vector[:1], np.ones((1, 6, 3)), np.arange(6)[None] < n)
            ),
        )[0, 0]
        for n in (2, 6)
    )
    assert np.abs(of_two - of_six).max() > 1e-3


# Points that are independent, N(m, s²) in every channel of the encoded data.
M, S = np.asarray([[[0.3, -0.2]]]), np.asarray([[[0.8, 1.4]]])


def exact(params, z, log_snr, cond, *, train, key):
    level = log_snr[:, None, None]
    a, b = jax.nn.sigmoid(level), jax.nn.sigmoid(-level)
    return jnp.sqrt(b) * (z - jnp.sqrt(a) * M) / (a * S**2 + b)


EXACT = VDM(linear(12.0, -30.0), from_apply(lambda *given: {}, exact), LIKELIHOOD)


def test_independent_points_have_their_closed_form_for_every_number():
    encoded = np.asarray(LIKELIHOOD.encode(X))
    # With the exact ε̂ the ODE carries z_0, of variance α_0² s² + σ_0², to the last level's law,
    # which is not quite N(0, I): what its mean is off is of the order of e^{−15}.
    a = 1 / (1 + math.exp(-12.0))
    mean, variance = math.sqrt(a) * M, a * S**2 + 1 - a
    z = math.sqrt(a) * encoded
    each = -0.5 * ((z - mean) ** 2 / variance + np.log(2 * np.pi * variance))
    each += 0.5 * math.log(a) - np.log(LIKELIHOOD.std)
    expected = np.where(MASK[..., None], each, 0).sum((1, 2))
    found = jax.jit(lambda: EXACT.log_likelihood(EXACT.init(KEYS[0], X), KEYS, X, COND, steps=200))
    np.testing.assert_allclose(found(), expected, atol=1e-5)


def test_the_diffusion_term_of_independent_points_has_its_closed_form():
    params, num, log_snr = EXACT.init(KEYS[0], X), 4000, 0.7
    x, cond = (np.repeat(part, num, axis=0) for part in (X, MASK))
    levels = NoiseLevels(jnp.full(len(x), log_snr), jnp.ones(len(x)))
    terms = jax.jit(EXACT.vlb)(
        params, jax.random.key(1), x, Conditions(mask=cond), noise_levels=levels
    )
    a = 1 / (1 + math.exp(-log_snr))
    v = a * S**2 + 1 - a
    away = np.asarray(LIKELIHOOD.encode(X)) - M
    each = 0.5 * ((a * S**2 / v) ** 2 + a * (1 - a) * away**2 / v**2)
    expected = np.where(MASK[..., None], each, 0).sum((1, 2))
    drawn = np.asarray(terms.diffusion).reshape(4, num)
    error = drawn.std(1, ddof=1) / math.sqrt(num)
    assert np.all(np.abs(drawn.mean(1) - expected) < 5 * error)
    assert np.all(error < 0.05 * expected)


def test_the_law_of_the_number_sums_to_one_and_follows_the_counts():
    law = sets.number_law(np.asarray([1, 1, 3, 1]), largest=4)
    np.testing.assert_allclose(law.probs, np.asarray([3.5, 0.5, 1.5, 0.5]) / 6)
    found = np.exp(law.log_prob(jnp.arange(-1, 9)))
    np.testing.assert_allclose(found, [0, 0, *law.probs, 0, 0, 0, 0])
    even = (np.arange(600) + 0.5) / 600
    np.testing.assert_array_equal(np.bincount(law.quantile(even))[1:], [350, 50, 150, 50])
    assert law.quantile(np.asarray([0.0, np.nextafter(1.0, 0.0)])).tolist() == [1, 4]


def test_a_set_without_an_order_has_the_density_of_all_its_orders():
    law = sets.number_law(NUMBERS)
    ordered = sets.number_term(law, MASK, "ordered")
    np.testing.assert_allclose(ordered, [-math.log(law.probs[n - 1]) for n in NUMBERS])
    orders = [math.log(math.factorial(n)) for n in NUMBERS]
    np.testing.assert_allclose(ordered - sets.number_term(law, MASK), orders, atol=1e-12)


def test_the_chain_of_sets_has_the_error_of_their_points():
    x = LIKELIHOOD.decode(jnp.asarray(M + S * RNG.normal(size=(2000, 6, 2))), jnp.asarray(60.0))
    mask = sets.of_lengths(1 + np.arange(2000) % 6, 6)
    x = np.where(mask[..., None], x, 100.0)
    params = EXACT.init(KEYS[0], x[:1])
    log_snrs = np.asarray([-2.0, 1.0, 3.0])
    found = few_steps.moments(
        EXACT, params, x, Conditions(mask=mask), key=KEYS[0], log_snrs=log_snrs
    )
    a = 1 / (1 + np.exp(-log_snrs[:2, None, None]))
    expected = S**2 * (1 - a) / (a * S**2 + 1 - a)
    assert found.error.shape == (2, 1, 2)
    # Of 7,000 points: (x − x̂)² is χ² of one, whose deviation is √2 times its mean.
    np.testing.assert_allclose(found.error, expected, rtol=5 * math.sqrt(2 / mask.sum()))
    chain = few_steps.chain(
        EXACT, params, x, Conditions(mask=mask), num_steps=2, variance="channel", num_levels=9
    )
    assert chain.variance.values.shape == (2, 1, 2)
    with pytest.raises(ValueError, match=r"points of sets have no places.*got 'table'"):
        few_steps.chain(EXACT, params, x, Conditions(mask=mask), num_steps=2)


def test_fit_takes_the_mean_over_sets_of_the_bits_per_dimension_of_each():
    params, key = PARAMS, jax.random.key(2)
    given = {"optimizer": optax.sgd(0.0), "num_steps": 1, "batch_size": 4, "cond": COND}
    _, (loss,) = vdm.fit(MODEL, params, X, key=key, **given)
    # At a rate of 0, and over draws: the mean of what the bound says, set by set.
    draws = 400
    _, losses = vdm.fit(MODEL, params, X, key=key, **given | {"num_steps": draws})
    assert losses[0] == loss
    vlb = jax.jit(MODEL.vlb)
    expected = np.asarray(
        [
            np.mean(
                np.asarray(vlb(params, keys(i, 4), X, COND).total) / (2 * NUMBERS * math.log(2))
            )
            for i in range(draws)
        ]
    )
    error = math.hypot(losses.std(ddof=1), expected.std(ddof=1)) / math.sqrt(draws)
    assert abs(losses.mean() - expected.mean()) < 5 * error
    # Over points it would be another mean, by far more.
    nats = np.asarray(vlb(params, keys(0, 4), X, COND).total)
    assert abs(nats.sum() / (2 * NUMBERS.sum() * math.log(2)) - expected.mean()) > 10 * error


def test_a_dropped_condition_leaves_the_mask():
    cond = Conditions(label=np.asarray([0, 1, 1, 0]), mask=MASK)
    found = drop_condition(jax.random.key(0), cond, 1.0)
    np.testing.assert_array_equal(found.label, [-1] * 4)
    np.testing.assert_array_equal(found.mask, MASK)


def test_guidance_of_sets_goes_from_the_unconditional_answer_to_the_other():
    model = VDM(linear(6.0, -5.0), NETWORK.clone(num_classes=2, optional_cond=True), LIKELIHOOD)
    cond = Conditions(label=np.asarray([0, 1, 1, 0]), mask=MASK)
    params, log_snr = of_network(model, X, cond), jnp.zeros(4)
    given, without, guided = (
        model.denoiser(params, c, guidance=g)(jnp.asarray(X), log_snr)
        for c, g in ((cond, None), (COND, None), (cond, 2.0))
    )
    assert np.abs(given - without).max() > 1e-3
    np.testing.assert_allclose(guided, without + 2.0 * (given - without), atol=1e-12)


def with_mask(mask, x=X):
    return lambda: MODEL.vlb(PARAMS, KEYS[: len(x)], x, Conditions(mask=mask))


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (with_mask(MASK[:, :5]), ValueError, r"shape \(4, 6\): got shape \(4, 5\)"),
        (with_mask(MASK.astype(int)), TypeError, "booleans.*: got int64"),
        (with_mask(MASK & (NUMBERS > 1)[:, None]), ValueError, "example 2 is all padding"),
        (with_mask(MASK, X[..., 0]), ValueError, r"of shape \[b, n_max, c\]: got data of"),
        (
            lambda: MODEL.vlb(PARAMS, KEYS, X),
            ValueError,
            "conditional, expected cond.mask|expected",
        ),
        (lambda: MODEL.vlb(PARAMS, KEYS, X, MASK), TypeError, "one of sets, expected Conditions"),
        (lambda: sets.of_lengths(np.asarray([2, 0]), 3), ValueError, "from 1 to 3 points: got 0"),
        (lambda: sets.of_lengths(np.asarray([2, 4]), 3), ValueError, "from 1 to 3 points: got 4"),
        (lambda: sets.number_law(np.asarray([], int)), ValueError, "got none"),
        (lambda: sets.number_law(NUMBERS, 5), ValueError, r"in 1..5: got 1 to 6"),
        (lambda: sets.NumberLaw((0.5, 0.6)), ValueError, "sum to 1: got 1.1"),
        (lambda: sets.NumberLaw((1.5, -0.5)), ValueError, "probabilities of 1, 2"),
        (lambda: sets.number_term(sets.number_law(NUMBERS), MASK, "sorted"), ValueError, "order"),
        (lambda: SetTransformer(channels=30), ValueError, "multiple of num_heads"),
        (lambda: SetTransformer(optional_cond=True), ValueError, "optional_cond needs a condition"),
        (lambda: MODEL.sample(PARAMS, KEYS, (4, 7, 2), num_steps=1, cond=COND), ValueError, "mask"),
        (
            lambda: NETWORK.init(KEYS[0], jnp.asarray(X[0]), jnp.zeros(6), COND),
            ValueError,
            r"expects sets of points, z of shape \[b, n_max, c\]",
        ),
    ],
)
def test_what_is_no_set_is_refused(call, error, said):
    with pytest.raises(error, match=said):
        call()


def test_what_cannot_be_done_with_sets_says_why():
    whole = VDM(linear(6.0, -5.0), NETWORK, discretised(5))
    x = np.abs(X).astype(int) % 5
    params = whole.init(jax.random.key(0), x, COND)
    with pytest.raises(ValueError, match="the ODE's likelihood of sets is for real numbers"):
        whole.log_likelihood(params, KEYS, x, COND)
    codec = whole.codec(params, (6, 2), num_steps=2)
    with pytest.raises(ValueError, match=r"examples of one shape.*got sets with a mask"):
        codec.encode(x, COND)
    # Integers have a bound, by a mask that leaves out the padding's share.
    found = jax.jit(whole.vlb)(params, KEYS, x, COND).total
    other = jax.jit(whole.vlb)(params, KEYS, np.where(MASK[..., None], x, 4), COND).total
    np.testing.assert_array_equal(found, other)


def test_attention_is_told_of_distances_and_of_nothing_else():
    """What it is told of two points stays as it is when all are turned and moved together."""
    params = {"params": PARAMS["network"]}

    def told(z):
        _, kept = NETWORK.apply(
            params, z, jnp.zeros(4), COND, mutable=["intermediates"], capture_intermediates=True
        )
        return kept["intermediates"]["pairs_in"]["__call__"][0]

    z = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6, 2)))
    turn = np.asarray([[np.cos(1.0), np.sin(1.0)], [-np.sin(1.0), np.cos(1.0)]])
    first = told(z)
    both = MASK[:, :, None] & MASK[:, None]
    moved = told(z @ turn + np.asarray([[[0.7, -2.0]]]))
    np.testing.assert_allclose(moved[both], first[both], atol=1e-9)
    np.testing.assert_allclose(first, jnp.swapaxes(first, 1, 2), atol=1e-12)
    assert np.abs(told(1.1 * z) - first)[both].max() > 0.01
    # The blocks use it: without what they make of it they say something else.
    silent = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if "pairs" in str(path[-2]) else leaf, params
    )
    outputs = [NETWORK.apply(p, z, jnp.zeros(4), COND) for p in (params, silent)]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    gradient = jax.grad(lambda z: jnp.sum(NETWORK.apply(params, z, jnp.zeros(4), COND) ** 2))(
        jnp.zeros((4, 6, 2))  # points that coincide
    )
    assert np.isfinite(gradient).all()
