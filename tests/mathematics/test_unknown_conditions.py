"""A class that a network does not have is an error, or not a number, and never another class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import keys
from vdm import VDM, networks
from vdm.likelihoods import discretised
from vdm.schedules import linear

X = jnp.asarray([[3, 4], [5, 6], [0, 1]])


def build(optional):
    network = networks.MLP(width=8, num_blocks=1, num_classes=4, optional_cond=optional)
    model = VDM(linear(8.0, -6.0), network, discretised(9))
    params = model.init(jax.random.key(0), X, jnp.asarray([0, 1, 2]))
    moved = jax.tree.map(lambda leaf: leaf + 0.1, params["network"])
    return model, {**params, "network": moved}


@pytest.mark.parametrize("optional", [False, True])
def test_outside_jit_it_is_an_error(optional):
    model, params = build(optional)
    for wrong in (4, -2, *([] if optional else [-1])):
        with pytest.raises(ValueError, match=rf"integers in 0\.\.3 of shape \(3,\): got {wrong}"):
            model.vlb(params, jax.random.key(1), X, jnp.asarray([0, wrong, 1]))


@pytest.mark.parametrize("optional", [False, True])
def test_under_jit_it_is_not_a_number_and_no_pixel(optional):
    model, params = build(optional)
    known = [0, 3] + [-1] * optional
    cond = jnp.asarray([*known, 4, -2, 10][:3] if not optional else [0, -1, 4])
    expected = [k in known for k in cond.tolist()]
    each = keys(0, 3)
    total = jax.jit(model.vlb)(params, each, X, cond).total
    assert np.isfinite(total).tolist() == expected
    samples = jax.jit(lambda cond: model.sample(params, each, X.shape, num_steps=2, cond=cond))(
        cond
    )
    assert np.all(samples >= 0, axis=1).tolist() == expected
    assert np.all(np.asarray(samples)[~np.asarray(expected)] == -1)


def test_no_level_is_made_of_what_is_not_a_number():
    likelihood, z = discretised(9), jnp.asarray([[jnp.nan, 0.2], [-5.0, 5.0]])
    for levels in (
        likelihood.decode(z, jnp.asarray(8.0)),
        likelihood.draw(jax.random.key(0), z, jnp.asarray(8.0)),
    ):
        assert levels[0, 0] == -1 and levels[0, 1] >= 0
        assert levels[1].tolist() == [0, 8]
