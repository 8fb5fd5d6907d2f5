"""Muon, held against the singular vectors that NumPy finds, and its place in the config."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm import optimizers
from vdm.networks import stacked
from vdm.run.config import OptimizerConfig
from vdm.run.errors import UserError
from vdm.run.training import optim

RATE = 0.1


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def update(gradient, params=None, **arguments):
    method = optimizers.muon(RATE, **{"weight_decay": 0.0, **arguments})
    params = jax.tree.map(jnp.zeros_like, gradient) if params is None else params
    return method.update(gradient, method.init(params), params)[0]


@pytest.mark.parametrize("shape", [(3, 3, 4, 5), (6, 9), (3, 2, 30)])
def test_a_step_is_as_large_in_every_direction_of_the_gradient(shape):
    gradient = normal(*shape)
    moved = update({"kernel": gradient})["kernel"]
    u, sizes, vt = np.linalg.svd(gradient.reshape(-1, shape[-1]), full_matrices=False)
    inside = u.T @ np.asarray(moved).reshape(-1, shape[-1]) @ vt.T
    # Of all entries a root mean square of 0.2 times the rate: singular values of that size times
    # √max(rows, columns). Newton–Schulz leaves them between 0.68 and 1.14 of it (Jordan et al.).
    expected = -RATE * optimizers.RMS * np.sqrt(max(u.shape[0], vt.shape[1]))
    kept = np.diagonal(inside) / expected
    assert sizes.max() / sizes.min() > 1.3
    assert kept.min() > 0.65 and kept.max() < 1.2
    np.testing.assert_allclose(inside, np.diag(np.diagonal(inside)), atol=2e-4 * abs(expected))


def test_vectors_and_embeddings_get_adam_with_nesterovs_momentum():
    gradient = {"bias": normal(4), "table": {"embedding": normal(3, 4)}}
    moved = update(gradient)
    adam = optax.nadam(RATE, b1=0.9, b2=0.99)
    expected = adam.update(gradient, adam.init(gradient))[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moved, expected)


def test_stacked_blocks_are_moved_one_by_one():
    def block(seed):
        return {"conv": {"kernel": normal(3, 3, 4, 4, seed=seed), "bias": normal(4, seed=seed)}}

    net = {f"down_block_{i}": block(i) for i in range(2)}
    net |= {f"up_block_{i}": block(9 + i) for i in range(3)}
    both = stacked.stack(net)
    assert both.keys() != net.keys()
    moved, expected = stacked.unstack(update(both)), update(net)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), moved, expected)


def test_what_muon_moves_decays_by_the_rate():
    zeros = {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}
    moved = update(zeros, {"kernel": jnp.full((3, 4), 0.5), "bias": jnp.ones(4)}, weight_decay=0.2)
    np.testing.assert_allclose(moved["kernel"], -RATE * 0.2 * 0.5, rtol=1e-6)
    assert not np.any(moved["bias"])


def test_the_gradients_average_has_the_memory_beta():
    # Of two gradients g and 0, Nesterov's average is (1 − β) β² g: nothing of it with β = 0.
    first, none = {"kernel": normal(4, 4)}, {"kernel": jnp.zeros((4, 4))}
    for beta, moves in ((0.0, False), (0.5, True)):
        method = optimizers.muon(RATE, beta=beta, weight_decay=0.0)
        _, state = method.update(first, method.init(none), none)
        assert bool(np.any(np.abs(method.update(none, state, none)[0]["kernel"]) > 1e-3)) == moves


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("beta", [-0.1, 1.0])
def test_a_beta_without_a_meaning_is_refused(beta):
    with pytest.raises(ValueError, match=f"beta must be at least 0 and below 1: got {beta}"):
        optimizers.muon(RATE, beta=beta)


def test_the_config_gives_it_rate_decay_and_betas():
    params = {
        "schedule": {"ends": {"log_snr_min": jnp.array(-6.0)}, "shape": {}},
        "network": {"kernel": jnp.full((3, 4), 0.5), "bias": jnp.ones(4)},
    }
    config = OptimizerConfig(
        {"name": "muon", "beta": 0.8}, learning_rate=RATE, warmup_steps=0, weight_decay=0.2
    )
    gradient = jax.tree.map(jnp.ones_like, params)
    method = optim.build(dataclasses.replace(config, clip_norm=0.0), num_steps=10)
    moved, _ = method.update(gradient, method.init(params), params)
    expected = update(gradient["network"], params["network"], beta=0.8, weight_decay=0.2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), moved["network"], expected
    )
    for block, message in (
        ({"name": "muon", "beta": 1.5}, r"optimizer\.method \(muon\): beta must be"),
        ({"name": "muon", "betta": 0.9}, "Did you mean 'beta'"),
        ({"name": "muon", "b1": 0.9}, "unknown argument"),
    ):
        with pytest.raises(UserError, match=message):
            optim.build(dataclasses.replace(config, method=block), num_steps=10)
