"""p(n|c) by a network: a term of the bound, and what it learns is the law of each condition."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vdm
from oracles import keys
from vdm import VDM, sets
from vdm.condition import Conditions, drop_condition
from vdm.few_steps.chain import Chain, Table
from vdm.likelihoods import gaussian
from vdm.networks import NumberNetwork, SetTransformer, from_apply
from vdm.schedules import learned_monotone, linear

RNG = np.random.default_rng(0)
NUMBERS = np.asarray([3, 6, 1, 4])
MASK = sets.of_lengths(NUMBERS, 6)
X = np.where(MASK[..., None], RNG.normal(size=(4, 6, 2)), 0.0)
LABEL, VECTOR = np.asarray([2, 0, 1, 2]), RNG.normal(size=(4, 2))
FIELD = RNG.normal(size=(4, 6, 1))
COND = Conditions(LABEL, VECTOR, FIELD, MASK)
KEYS = keys(5, 4)
CHAIN = Chain(jnp.asarray([-5.0, -1.0, 2.0, 6.0]), Table(np.asarray([[[0.9, 0.5]]] * 3)))
KINDS = {
    "label": {"num_classes": 3},
    "vector": {"cond_dim": 2},
    "both": {"num_classes": 3, "cond_dim": 2},
    "optional": {"num_classes": 3, "cond_dim": 2, "optional_cond": True},
}


def pointwise(params, z, log_snr, cond, *, train, key):
    return 0.3 * jnp.tanh(z + 0.1 * log_snr[:, None, None])


# The points' network has no parameters: all that is learned is the number.
PLAIN = VDM(linear(6.0, -5.0), from_apply(lambda *given: {}, pointwise), gaussian(0.05))


def moved(params, size=0.3):
    """Return parameters none of which is zero, as those of the last layer are at the start."""
    leaves, tree = jax.tree.flatten(params)
    fresh = [
        leaf + size * jax.random.normal(jax.random.key(i), leaf.shape, leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, fresh)


def modelled(kind="both", order="unordered"):
    """A model with a number network that is not fresh, and its parameters."""
    law = NumberNetwork(6, width=8, **KINDS[kind])
    model = dataclasses.replace(PLAIN, number_law=law, order=order)
    params = model.init(jax.random.key(0), X, COND)
    return model, {**params, "number_law": moved(params["number_law"])}


def by_hand(params, parts):
    """log p(n|c) of a perceptron, in NumPy's float64: for n = 1, 2, ... of each example."""

    def dense(name, h):
        return h @ np.asarray(params[name]["kernel"], float) + np.asarray(params[name]["bias"])

    h = np.concatenate(parts, axis=1)
    for name in ("dense0", "dense1"):
        h = dense(name, h)
        h = h / (1 + np.exp(-h))
    logits = dense("dense_out", h)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_the_network_is_a_perceptron_of_the_condition():
    model, params = modelled()
    own = params["number_law"]
    table = np.asarray(own["class_embed"]["embedding"])
    found = model.number_laws(params, COND, 4).log_probs
    assert found.shape == (4, 6) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, by_hand(own, [table[LABEL], VECTOR]), atol=2e-6)
    assert np.ptp(np.asarray(found), axis=0).min() > 0.02  # it does depend on the condition
    np.testing.assert_allclose(np.exp(found).sum(1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_network_is_uniform(kind):
    law = NumberNetwork(6, width=8, **KINDS[kind])
    params = law.init(jax.random.key(0), COND, 4)
    np.testing.assert_allclose(law.apply(params, COND, 4), -math.log(6), rtol=1e-6)
    # The bound's prior term is more by what a number of six says.
    model = dataclasses.replace(PLAIN, number_law=law, order="ordered")
    all_params = model.init(jax.random.key(0), X, COND)
    there, plain = (
        m.vlb(all_params, KEYS, X, COND)
        for m in (model, dataclasses.replace(PLAIN, order="ordered"))
    )
    np.testing.assert_allclose(there.prior - plain.prior, math.log(6), rtol=1e-6)
    np.testing.assert_array_equal(there.diffusion, plain.diffusion)
    np.testing.assert_array_equal(there.reconstruction, plain.reconstruction)


# What a model says of sets, as its nats.
NATS = {
    "bound": lambda m, p, x, c: m.vlb(p, KEYS, x, c).total,
    "steps": lambda m, p, x, c: m.vlb(p, KEYS, x, c, num_steps=4).total,
    "chain": lambda m, p, x, c: m.vlb(p, KEYS, x, c, chain=CHAIN, all_steps=True).total,
    "path": lambda m, p, x, c: -m.path_weights(p, KEYS, x, c, chain=CHAIN),
    "ode": lambda m, p, x, c: -m.log_likelihood(p, KEYS, x, c, steps=4),
}


@pytest.mark.parametrize("order", sets.ORDERS)
@pytest.mark.parametrize("name", NATS)
def test_the_number_adds_its_own_nats_to_whatever_is_said_of_the_points(name, order):
    model, params = modelled(order=order)
    fn = jax.jit(lambda m, p: NATS[name](m, p, X, COND), static_argnums=0)
    more = np.asarray(fn(model, params)) - np.asarray(fn(PLAIN, params))
    table = np.asarray(params["number_law"]["class_embed"]["embedding"])
    by_number = by_hand(params["number_law"], [table[LABEL], VECTOR])
    expected = -by_number[np.arange(4), NUMBERS - 1]
    if order == "unordered":
        expected -= [math.lgamma(n + 1) for n in NUMBERS]
    np.testing.assert_allclose(more, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("garbage", [7.0, np.nan])
def test_padding_and_what_is_known_of_each_point_have_no_part_in_it(garbage):
    model, params = modelled()
    term = jax.jit(model.number_term)
    there = term(params, COND)
    np.testing.assert_array_equal(term(params, COND._replace(field=FIELD + garbage)), there)
    # Wherever the points stand, with however much padding.
    wide = np.pad(MASK[:, ::-1], ((0, 0), (2, 5)))
    np.testing.assert_array_equal(term(params, COND._replace(field=None, mask=wide)), there)
    bound = jax.jit(model.vlb)
    filled = np.where(MASK[..., None], X, garbage)
    np.testing.assert_array_equal(bound(params, KEYS, filled, COND), bound(params, KEYS, X, COND))


def test_a_number_that_cannot_be_has_no_probability():
    laws = sets.NumberLaws(np.log(np.asarray([[0.25, 0.75], [0.5, 0.5], [0.5, 0.5]])))
    found = laws.log_prob(jnp.asarray([2, 0, 3]))
    np.testing.assert_allclose(found, [math.log(0.75), -np.inf, -np.inf])


def test_the_quantiles_of_each_example_are_those_of_its_own_law():
    probs = RNG.dirichlet(np.ones(5), size=3)
    u = RNG.uniform(size=600)
    found = sets.NumberLaws(np.log(np.repeat(probs, 200, axis=0))).quantile(u)
    for law, own, there in zip(probs, u.reshape(3, 200), found.reshape(3, 200), strict=True):
        np.testing.assert_array_equal(there, sets.NumberLaw(tuple(law)).quantile(own))
        # By its definition: the least n with u < P(1) + ... + P(n).
        below = [next(n + 1 for n in range(5) if one < law[: n + 1].sum()) for one in own]
        np.testing.assert_array_equal(there, below)


def test_an_example_without_its_condition_has_a_law_of_its_own():
    model, params = modelled("optional")
    own, dropped = params["number_law"], drop_condition(jax.random.key(0), COND, 1.0)
    none = np.asarray(own["class_embed"]["embedding"])[3], own["no_cond_embed"]["embedding"][0]
    expected = by_hand(own, [np.repeat(part[None], 4, axis=0) for part in none])
    for cond in (dropped, Conditions(mask=MASK), None):
        found = model.number_laws(params, cond, 4).log_probs
        np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.abs(model.number_laws(params, COND, 4).log_probs - expected).max() > 0.02


def learned(law, cond, numbers, steps):
    """The parameters of a number law that was trained with a model of these sets."""
    mask = sets.of_lengths(numbers, law.largest)
    x = np.where(mask[..., None], RNG.normal(size=(*mask.shape, 1)), 0.0)
    cond = cond._replace(mask=mask)
    model = dataclasses.replace(PLAIN, number_law=law)
    params, _ = vdm.fit(
        model,
        model.init(jax.random.key(0), x, cond),
        x,
        key=jax.random.key(1),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.02, steps)),
        num_steps=steps,
        batch_size=len(x),
        cond=cond,
    )
    return model, params


def test_a_set_of_more_points_than_the_law_knows_is_refused():
    law, cond = NumberNetwork(3, num_classes=2), Conditions(np.zeros(2, int))
    mask = sets.of_lengths(np.asarray([2, 4]), 4)
    x, cond = np.zeros((2, 4, 1)), cond._replace(mask=mask)
    model = dataclasses.replace(PLAIN, number_law=law)
    params = model.init(jax.random.key(0), x, cond)
    assert np.array_equal(np.isinf(model.number_term(params, cond)), [False, True])
    with pytest.raises(ValueError, match=r"knows up to 3 points \(largest\): got a set of 4"):
        vdm.fit(
            model,
            params,
            x,
            key=jax.random.key(1),
            optimizer=optax.adam(0.1),
            num_steps=1,
            batch_size=2,
            cond=cond,
        )


@pytest.mark.parametrize("kind", ["label", "vector"])
def test_training_finds_the_counts_of_every_class(kind):
    size, probs = 400, np.asarray([[0.5, 0.3, 0.15, 0.05], [0.0, 0.1, 0.0, 0.9], [0.25] * 4])
    # Each class has its counts exactly: the best law of the bound is their shares.
    counts = (size * probs).astype(int)
    numbers = np.concatenate([np.repeat(np.arange(1, 5), own) for own in counts])
    label = np.repeat(np.arange(3), size)
    # Vectors that tell the classes apart, and one number of noise more.
    vector = np.stack([label - 1.0, 0.1 * RNG.normal(size=len(label))], axis=1)
    cond = Conditions(label) if kind == "label" else Conditions(vector=vector)
    model, params = learned(NumberNetwork(4, width=16, **KINDS[kind]), cond, numbers, 400)
    asked = Conditions(np.arange(3), np.stack([np.arange(3) - 1.0, np.zeros(3)], axis=1))
    found = np.exp(model.number_laws(params, asked, 3).log_probs)
    # A standard error of a share of so many sets, and where there were none half a set.
    error = np.sqrt(probs * (1 - probs) / size) + 0.5 / size
    assert np.all(np.abs(found - probs) < error), (found - probs) / error


def test_what_is_trained_is_the_number_alone_where_the_points_learn_nothing():
    """The gradient of the bound is that of −log p(n|c): the softmax's, share less one."""
    model, params = modelled("label")
    loss = jax.jit(jax.grad(lambda p: jnp.sum(model.vlb(p, KEYS, X, COND).total)))
    found = np.asarray(loss(params)["number_law"]["dense_out"]["bias"])
    probs = np.exp(model.number_laws(params, COND, 4).log_probs)
    expected = probs.sum(0) - np.bincount(NUMBERS - 1, minlength=6)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_parameters_of_a_model_without_it_are_those_that_they_were():
    network = SetTransformer(channels=8, num_blocks=1, num_heads=2, num_classes=3)
    plain = VDM(learned_monotone(6.0, -5.0, width=4), network, gaussian(0.05))
    cond = Conditions(LABEL, mask=MASK)
    model = dataclasses.replace(plain, number_law=LABELS)
    fresh, there = (m.init(jax.random.key(7), X, cond) for m in (model, plain))
    assert there.keys() == {"schedule", "network"}
    number = fresh.pop("number_law")
    jax.tree.map(np.testing.assert_array_equal, fresh, there)
    assert {leaf.dtype for leaf in jax.tree.leaves(number)} == {np.dtype("float32")}


BOTH = NumberNetwork(6, **KINDS["both"])
LABELS = NumberNetwork(6, **KINDS["label"])


def given(cond, law=LABELS):
    return lambda: law.init(jax.random.key(0), cond, 4)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: NumberNetwork(6), ValueError, "without a condition a histogram says the same"),
        (lambda: NumberNetwork(6, optional_cond=True), ValueError, "a histogram says the same"),
        (lambda: NumberNetwork(0, num_classes=3), ValueError, "largest must be .* got 0"),
        (lambda: NumberNetwork(6, width=0, num_classes=3), ValueError, "width must be .* got 0"),
        (lambda: NumberNetwork(6, num_classes=0), ValueError, "num_classes must be .* got 0"),
        (given(None), ValueError, r"integers in 0..2 of shape \(4,\): got cond=None"),
        (given(Conditions(vector=VECTOR)), ValueError, "got no label"),
        (given(Conditions(LABEL), BOTH), ValueError, r"floats of shape \(4, 2\): got no vector"),
        (given(LABEL + 1), ValueError, "integers in 0..2 .*got 3"),
        (given(LABEL[:3]), ValueError, r"got shape \(3,\)"),
        (given(Conditions(VECTOR[:, 0])), TypeError, "cond.label to be integers"),
        (given(LABEL, BOTH), TypeError, "has several conditions"),
    ],
)
def test_what_is_no_law_of_the_number_is_refused(call, error, said):
    with pytest.raises(error, match=said):
        call()
