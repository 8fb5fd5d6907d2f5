"""Dropout by an example's number: the same alone, in any order, in any part of a batch."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm.networks import MLP, UNet, dropout, from_apply, stacked
from vdm.networks.dropout import Dropout

RATE = 0.4
SIZE = 6
KEY = jax.random.key(3)


class Twice(nn.Module):
    """Two masks of ones, one after the other; `said` is how flax is told that it is training."""

    said: str = "constructor"

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train):
        masks = []
        for _ in range(2):
            h = jnp.ones_like(z)
            if self.said == "constructor":
                masks.append(nn.Dropout(RATE, deterministic=not train)(h))
            elif self.said == "call":
                masks.append(nn.Dropout(RATE)(h, deterministic=not train))
            else:
                masks.append(nn.Dropout(RATE)(h, not train))
        return jnp.concatenate(masks, axis=-1)


def plain_init(key, z, log_snr, cond):
    return {"scale": jnp.ones(())}


def plain_apply(params, z, log_snr, cond, *, train, key):
    return params["scale"] * z * jax.random.bernoulli(key, 1 - RATE, z.shape)


NETWORKS = {
    "u-net": UNet(channels=8, num_blocks=1, num_groups=4, dropout=RATE),
    "u-net, remat": UNet(channels=8, num_blocks=1, num_groups=4, dropout=RATE, remat=True),
    "mlp": MLP(width=8, num_blocks=2, dropout=RATE),
    "two functions": from_apply(plain_init, plain_apply),
    "constructor": Twice(),
    "call": Twice("call"),
    "second argument": Twice("position"),
}


def made(network):
    """An output of the rows asked for, parameters all being away from zero."""
    z = jax.random.normal(jax.random.key(0), (SIZE, 4, 4, 1), jnp.float32)
    log_snr = jnp.linspace(-3.0, 5.0, SIZE)
    init = functools.partial(network.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), z, log_snr).get("params", {})
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(1)
    draw = [jnp.asarray(0.3 + rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]
    params = jax.tree.unflatten(tree, draw)

    def of(rows, key=KEY):
        rows = np.asarray(rows)
        given = Dropout(key, jnp.asarray(rows))
        return dropout.apply(network, {"params": params}, z[rows], log_snr[rows], None, given)

    return of


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_an_example_loses_the_same_units_whatever_is_beside_it(network):
    of = made(network)
    whole = of(range(SIZE))
    # How float32 rounds depends on the size of a batch and on the processor, and parameters of
    # size 1 amplify it. Other units make a difference of the size of the output.
    for rows in ([3], [5, 0, 2], [0, 1, 2]):
        np.testing.assert_allclose(of(rows), whole[np.array(rows)], rtol=1e-3, atol=1e-3)
    assert not np.allclose(whole, of(range(SIZE), jax.random.key(4)), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("network", [NETWORKS[name] for name in ("constructor", "call")])
def test_masks_differ_between_examples_and_modules_and_keep_the_mean(network):
    of = made(network)
    rows = np.arange(SIZE)
    both = np.concatenate([of(rows, jax.random.key(n)) for n in range(200)])
    kept = both > 0
    np.testing.assert_allclose(both[kept], 1 / (1 - RATE), rtol=1e-6)
    error = np.sqrt(RATE * (1 - RATE) / kept.size)
    assert abs(kept.mean() - (1 - RATE)) < 4 * error
    first, second = kept[..., 0].reshape(-1, 16), kept[..., 1].reshape(-1, 16)
    # 16 units agree by chance with probability 0.52^16: of 1,200 pairs none is expected.
    assert not np.any(np.all(first == second, axis=1))
    assert len(np.unique(first, axis=0)) > 1150


def test_two_functions_have_a_key_for_each_example():
    dropped = made(NETWORKS["two functions"])(range(SIZE)).reshape(SIZE, -1) == 0
    # Of 16 units two examples drop the same by chance in one of 35,000 pairs; here are 15.
    assert len(np.unique(dropped, axis=0)) == SIZE


def test_stacked_parameters_lose_the_same_units():
    network = UNet(channels=8, num_blocks=3, num_groups=4, dropout=RATE)
    z = jax.random.normal(jax.random.key(0), (SIZE, 4, 4, 1), jnp.float32)
    log_snr = jnp.linspace(-3.0, 5.0, SIZE)
    shapes = network.init(jax.random.key(0), z, log_snr, train=False)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: jnp.asarray(0.3 * rng.normal(size=p.shape), p.dtype), shapes)

    def of(params, rows):
        given = Dropout(KEY, jnp.asarray(rows))
        return dropout.apply(network, {"params": params}, z[rows], log_snr[rows], None, given)

    rows = np.array([4, 1])
    single = of(params, rows)
    np.testing.assert_allclose(of(stacked.stack(params), rows), single, rtol=2e-4, atol=1e-4)
    plain = network.apply({"params": params}, z[rows], log_snr[rows], train=False)
    assert not np.allclose(single, plain, atol=1e-2)


def test_without_a_key_nothing_is_dropped():
    network, z = NETWORKS["constructor"], jnp.ones((2, 4, 4, 1))
    assert np.all(dropout.apply(network, {"params": {}}, z, jnp.zeros(2), None, None) == 1)
