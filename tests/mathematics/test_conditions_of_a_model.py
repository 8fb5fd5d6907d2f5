"""What a model does with several conditions is what it does with the same numbers in one array."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vdm
from oracles import keys
from vdm import VDM, few_steps
from vdm.condition import Conditions
from vdm.likelihoods import discretised
from vdm.networks import from_apply
from vdm.networks.dropout import Dropout
from vdm.schedules import linear

X = np.asarray([[3, 4], [5, 6], [0, 1], [7, 2]])
LABEL = np.asarray([0, 2, 1, 2])
VECTOR = np.asarray([[0.5], [-1.0], [2.0], [0.25]])
FIELD = np.asarray([[1.0], [0.0], [-1.0], [0.5]])
SEVERAL = Conditions(LABEL, VECTOR, FIELD)
ONE = np.concatenate([LABEL[:, None], VECTOR, FIELD], axis=1)


def init(key, z, log_snr, cond):
    return {"w": jnp.asarray([0.1, 0.2, -0.3])}


def columns(cond):
    if isinstance(cond, Conditions):
        return [jnp.asarray(cond.label, float), cond.vector[:, 0], cond.field[:, 0]]
    return [cond[:, i] for i in range(3)]


def apply(params, z, log_snr, cond, *, train, key):
    steered = sum(w * c for w, c in zip(params["w"], columns(cond), strict=True))
    return 0.5 * z + jnp.tanh(steered * log_snr / 8.0)[:, None]


def model(**kinds):
    return VDM(linear(8.0, -6.0), from_apply(init, apply, **kinds), discretised(9))


SPLIT = model(num_classes=3, cond_dim=1, cond_channels=1)
JOINED = model(cond_dim=3)
PARAMS = SPLIT.init(jax.random.key(0), X, SEVERAL)


def vlb(model, cond):
    return jax.jit(model.vlb)(PARAMS, keys(0, 4), X, cond).total


def path_weights(model, cond):
    chain = few_steps.even(model, PARAMS, 3)
    return model.path_weights(PARAMS, keys(1, 4), X, cond, chain=chain)


def log_likelihood(model, cond):
    return model.log_likelihood(PARAMS, keys(2, 4), X, cond, steps=5)


def sample(model, cond):
    return model.sample(PARAMS, keys(3, 4), X.shape, num_steps=3, cond=cond)


def dropped_out(model, cond):
    dropout = Dropout(jax.random.key(4), jnp.arange(4))
    z = jnp.asarray(X, float)
    return model.denoiser(PARAMS, jax.tree.map(jnp.asarray, cond), dropout_key=dropout)(
        z, jnp.asarray(0.5)
    )


def codec(model, cond):
    code = model.codec(PARAMS, (2,), num_steps=5, batch_size=3)
    encoded = code.encode(X, cond)
    np.testing.assert_array_equal(code.decode(encoded.words, 4, cond), X)
    return np.append(encoded.words, code.fingerprint(cond))


def fitted(model, cond):
    options = {"optimizer": optax.sgd(0.1), "num_steps": 3, "batch_size": 2}
    params, _ = vdm.fit(model, PARAMS, X, key=jax.random.key(5), cond=cond, **options)
    return params["network"]["w"]


def chain(model, cond):
    found = few_steps.chain(
        model, PARAMS, X, cond=cond, key=jax.random.key(6), num_steps=3, variance="level"
    )
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)])


@pytest.mark.parametrize(
    "fn", [vlb, path_weights, log_likelihood, sample, dropped_out, codec, fitted, chain]
)
def test_several_conditions_do_what_their_numbers_do(fn):
    found = np.asarray(fn(SPLIT, SEVERAL))
    np.testing.assert_array_equal(found, np.asarray(fn(JOINED, ONE)))
    assert np.all(np.isfinite(found))
    # And each part counts.
    for name, part in SEVERAL._asdict().items():
        if part is None:  # the mask, which is of sets alone
            continue
        other = SEVERAL._replace(**{name: part[::-1].copy()})
        assert not np.array_equal(found, np.asarray(fn(SPLIT, other))), name


@pytest.mark.usefixtures("unchecked")
def test_a_list_of_classes_is_one_condition():
    classes = dataclasses.replace(
        SPLIT, network=vdm.networks.MLP(width=8, num_blocks=1, num_classes=3)
    )
    params = classes.init(jax.random.key(0), X, LABEL)
    found = classes.vlb(params, keys(0, 4), X, LABEL.tolist()).total
    np.testing.assert_array_equal(found, classes.vlb(params, keys(0, 4), X, LABEL).total)


def test_parts_of_several_lengths_are_refused():
    short = SEVERAL._replace(vector=VECTOR[:3])
    with pytest.raises(ValueError, match=r"as many examples: got \[4, 3, 4\]"):
        fitted(SPLIT, short)
    with pytest.raises(ValueError, match=r"as many examples: got \[4, 3, 4\]"):
        codec(SPLIT, short)
