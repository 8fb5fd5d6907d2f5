"""Kernels cast once are the kernels that the layers cast themselves."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm.networks import MLP, UNet, precision, stacked

pytestmark = pytest.mark.float32

NETWORKS = {
    "u-net": UNet(channels=8, num_blocks=2, num_groups=4, attention="everywhere", dtype="bfloat16"),
    "mlp": MLP(width=8, num_blocks=2, dtype="bfloat16"),
    "float32": MLP(width=8, num_blocks=2),
}


def made(network):
    z = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
    log_snr = jnp.linspace(-3.0, 5.0, 3)
    shapes = jax.eval_shape(network.init, jax.random.key(0), z, log_snr)["params"]
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
    params = jax.tree.map(draw, shapes)
    return params, lambda params: network.apply({"params": params}, z, log_snr)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_output_is_the_same_and_only_kernels_are_cast(name):
    params, output = made(NETWORKS[name])
    cast = precision.cast(NETWORKS[name], params)
    np.testing.assert_array_equal(output(cast), output(params))
    narrow = jnp.float32 if name == "float32" else jnp.bfloat16
    for path, leaf in jax.tree_util.tree_leaves_with_path(cast):
        assert leaf.dtype == (narrow if path[-1].key == "kernel" else jnp.float32)


def test_stacked_kernels_are_cast_too():
    network = NETWORKS["u-net"]
    params, output = made(network)
    held = stacked.stack(params)
    cast = precision.cast(network, held)
    narrow = {leaf.dtype for leaf in jax.tree.leaves(cast)}
    assert narrow == {jnp.dtype("float32"), jnp.dtype("bfloat16")}
    np.testing.assert_array_equal(output(cast), output(held))


def test_other_networks_are_given_what_they_have():
    class Own(nn.Module):
        dtype: str = "bfloat16"

    params = {"kernel": jnp.ones((2, 2))}
    assert precision.cast(Own(), params) is params
