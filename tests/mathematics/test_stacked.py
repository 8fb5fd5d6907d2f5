"""Equal blocks of a U-Net as one array: another layout of parameters, the same function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm.networks import UNet, stacked

FIELDS = {"channels": 8, "num_blocks": 3, "num_groups": 4, "dtype": "float64"}
SHAPE = (2, 4, 4, 1)


def inputs():
    z = np.random.RandomState(0).normal(size=SHAPE)
    return jnp.asarray(z), jnp.asarray([-2.0, 5.0]), jnp.asarray([0, 2])


def moved(network):
    """Parameters of which no two blocks have the same."""
    fresh = jax.eval_shape(network.init, jax.random.key(0), *inputs())
    rng = np.random.RandomState(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape)), fresh)


@functools.partial(jax.jit, static_argnums=0)
def value_and_grad(network, params):
    z, log_snr, cond = inputs()

    def loss(params):
        rngs = {"dropout": jax.random.key(3)}
        output = network.apply(params, z, log_snr, cond, train=True, rngs=rngs)
        return jnp.sum(jnp.sin(output)), output

    return jax.value_and_grad(loss, has_aux=True)(params)


def assert_equal(one, other, rtol=0.0):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("attention", ["none", "middle", "everywhere"])
@pytest.mark.parametrize("remat", [False, True])
def test_stacked_parameters_give_the_same_output_gradient_and_dropout(attention, remat):
    network = UNet(**FIELDS, attention=attention, remat=remat, dropout=0.5, num_classes=3)
    params = moved(network)
    (_, one), gradient = value_and_grad(network, params)
    (_, other), stacked_gradient = value_and_grad(network, stacked.stack(params))
    np.testing.assert_allclose(other, one, rtol=1e-10, atol=1e-10)
    scale = optax.tree.norm(gradient)
    unstacked = stacked.unstack(stacked_gradient)
    assert_equal(*(jax.tree.map(lambda g: g / scale, g) for g in (gradient, unstacked)), rtol=1e-12)


def test_a_single_block_a_side_is_stacked_too():
    network = UNet(**{**FIELDS, "num_blocks": 1}, num_classes=3)
    params = moved(network)
    (_, one), _ = value_and_grad(network, params)
    (_, other), _ = value_and_grad(network, stacked.stack(params))
    np.testing.assert_allclose(other, one, rtol=1e-10, atol=1e-10)


def test_a_program_of_stacked_blocks_does_not_grow_with_their_number():
    def lines(num_blocks, layout):
        network = UNet(**{**FIELDS, "num_blocks": num_blocks}, num_classes=3)
        program = jax.jit(network.apply).lower(layout(moved(network)), *inputs())
        return len(program.as_text().splitlines())

    assert lines(3, stacked.stack) == lines(6, stacked.stack)
    assert lines(3, stacked.unstack) < lines(6, stacked.unstack)


def test_stacking_is_undone_by_unstacking_wherever_the_parameters_are():
    params = moved(UNet(**FIELDS, attention="everywhere", num_classes=3))
    optimizer = optax.adamw(1e-3)
    tree = {
        "params": {"network": params["params"], "schedule": {"ends": {"a": jnp.ones(3)}}},
        "optimiser": optimizer.init(params),
    }
    held = stacked.stack(tree)
    assert len(jax.tree.leaves(held)) < 0.6 * len(jax.tree.leaves(tree))
    assert_equal(stacked.unstack(held), tree)
    assert_equal(stacked.stack(stacked.unstack(held)), held)
    assert_equal(stacked.stack(held), held)


def test_where_each_block_is_in_a_stack():
    params = moved(UNet(**FIELDS, num_classes=3))["params"]
    held = stacked.stack(params)
    assert {key for key in held if "block" in key} == {
        "down_block_*",
        "up_block_*",
        "up_block_0",
        "mid_block_1",
        "mid_block_2",
    }
    for j in range(3):
        for side, i in (("down", j), ("up", 3 - j)):
            one, of = held[f"{side}_block_*"], params[f"{side}_block_{i}"]
            assert_equal(jax.tree.map(lambda leaf, j=j: leaf[j], one), of)


def test_what_has_no_equal_blocks_stays_as_it_is():
    other = {"down_block_0": jnp.ones(3), "down_block_1": jnp.ones(4), "up_block_0": jnp.ones(3)}
    for tree in (other, {"dense": jnp.ones(3)}, [optax.MaskedNode()], ()):
        assert_equal(stacked.stack(tree), tree)
        assert_equal(stacked.unstack(tree), tree)


def test_an_array_has_as_many_axes_as_in_its_own_block():
    params = moved(UNet(**FIELDS, attention="everywhere", num_classes=3))
    single = jax.tree.map(jnp.ndim, params)
    of_stacked = stacked.num_axes(stacked.stack(params))
    assert stacked.num_axes(params) == single
    down = single["params"]["down_block_0"]
    assert of_stacked["params"]["down_block_*"] == down
    assert of_stacked["params"]["up_attn_*"] == single["params"]["up_attn_1"]
    assert set(jax.tree.leaves(down)) == {1, 2, 4}
