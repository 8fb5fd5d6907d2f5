"""The network that says how uncertain x̂ is, its loss, and samples of a chain with the exact v."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import ancestral_step, arrays, scales, within
from vdm import VDM, few_steps, losses
from vdm.diffusion import convert, q_sample
from vdm.likelihoods import gaussian
from vdm.networks import MLP
from vdm.schedules import learned_linear, linear

WIDTHS = np.asarray([0.3, 2.0])


class Constant(nn.Module):
    """log v is one number for each dimension."""

    @nn.compact
    def __call__(self, z, x_hat, log_snr):
        return jnp.zeros_like(z) + self.param("log_v", nn.initializers.zeros, (1, z.shape[-1]))


class Shrunk(nn.Module):
    """The exact denoiser of Gaussian data N(0, diag s²): ε̂ = σ z/(α² s² + σ²)."""

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train):
        gain = self.param("gain", nn.initializers.ones, ())
        a, s = scales(log_snr[:, None])
        return gain * s * z / (a**2 * jnp.asarray(WIDTHS[None] ** 2) + s**2)


def rows(module, params, x, z, x_hat, log_snr):
    given = (jnp.asarray(part) for part in (x, z, x_hat, log_snr))
    return few_steps.head_loss(module, params, *given, 4.0)


def test_the_loss_is_least_where_v_is_the_mean_error():
    """At a given level its derivative is ½ κ² (v − e)/(1 + κ v)²: zero at v = e, and only there."""
    x, x_hat, z = (arrays(seed, (50, 2)) for seed in range(3))
    level = np.full(50, -1.0)
    mean = np.mean((x - x_hat) ** 2, 0, keepdims=True)
    kappa = np.exp(4.0) - np.exp(-1.0)

    def slope(factor):
        v = factor * mean
        loss = lambda p: jnp.mean(rows(Constant(), p, x, z, x_hat, level))  # noqa: E731
        by_log_v = jax.grad(loss)({"log_v": jnp.log(jnp.asarray(v))})["log_v"]
        np.testing.assert_allclose(
            by_log_v, 0.5 * kappa**2 * v * (v - mean) / (1 + kappa * v) ** 2, atol=1e-12
        )
        return np.asarray(by_log_v)

    assert np.all(slope(0.9) < 0) and np.all(np.abs(slope(1.0)) < 1e-12) and np.all(slope(1.1) > 0)


def test_the_loss_is_a_normal_law_s_where_the_step_is_long_and_nothing_where_it_is_short():
    """½ Σ [log v + (x − x̂)²/v − 1 + log κ] + O(1/κ), and 0 at the cleanest level."""
    x, x_hat, z = (arrays(seed, (5, 2)) for seed in range(3))
    log_v = np.asarray([[-0.3, 0.4]])
    params = {"log_v": jnp.asarray(log_v)}
    given = (jnp.asarray(part) for part in (x, z, x_hat, np.full(5, -1.0)))
    got = few_steps.head_loss(Constant(), params, *given, 25.0)
    normal = log_v + (x - x_hat) ** 2 / np.exp(log_v) - 1 + 25.0
    np.testing.assert_allclose(got, 0.5 * normal.sum(1), rtol=1e-9)
    np.testing.assert_allclose(rows(Constant(), params, x, z, x_hat, np.full(5, 4.0)), 0, atol=1e-9)


def test_the_loss_has_no_gradient_to_the_denoiser():
    """Joined to the loss of a denoiser, it leaves that one's gradient as it is, bit for bit."""
    model = VDM(learned_linear(4.0, -4.0), MLP(width=4, num_blocks=1), gaussian(0.1))
    x, eps = jnp.asarray(arrays(0, (5, 2))), jnp.asarray(arrays(1, (5, 2)))
    params = model.init(jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    head = few_steps.VarianceHead(width=4, num_layers=1)
    own = head.init(jax.random.key(1), x, x, jnp.zeros(5))["params"]
    own = jax.tree.map(lambda leaf: leaf + 0.1, own)
    times = jnp.linspace(0.1, 0.9, 5)

    def loss(params, own, joined):
        log_snr, encoded = model.log_snr(params)(times), model.likelihood.encode(x)
        z = q_sample(encoded, eps, log_snr)
        eps_hat = model.denoiser(params)(z, log_snr)
        alone = jnp.mean(losses.sum_dims(jnp.square(eps - eps_hat)))
        if not joined:
            return alone
        x_hat = convert(eps_hat, z, log_snr, source="eps", target="x")
        high = model.log_snr(params)(jnp.asarray(0.0))
        return alone + jnp.mean(few_steps.head_loss(head, own, encoded, z, x_hat, log_snr, high))

    alone = jax.grad(loss)(params, own, False)
    joined, of_head = jax.grad(loss, argnums=(0, 1))(params, own, True)
    jax.tree.map(np.testing.assert_array_equal, joined, alone)
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(of_head)) > 1e-3


@pytest.mark.parametrize("shape", [(3, 2), (3, 5, 2), (3, 4, 5, 1)])
@pytest.mark.parametrize("levels", [None, 7])
def test_a_new_head_takes_data_for_normal(shape, levels):
    """v starts at 1/(1 + SNR), for vectors, sequences and images."""
    head = few_steps.VarianceHead(width=4, num_layers=1, levels=levels)
    z, log_snr = jnp.asarray(arrays(0, shape)), jnp.asarray([-13.0, 0.3, 13.0])
    params = head.init(jax.random.key(0), z, z, log_snr)
    v = np.exp(np.asarray(head.apply(params, z, 5.0 * z, log_snr)))
    start = 1 / (1 + np.exp(np.asarray(log_snr)))
    np.testing.assert_allclose(v, np.broadcast_to(start[:, None], (3, v[0].size)).reshape(shape))


def test_a_head_of_no_width():
    with pytest.raises(ValueError, match="width"):
        few_steps.VarianceHead(width=0)


def covariance_of(levels, v):
    """The variances of z_0 by the chain's own steps, which are linear in z, from N(0, I)."""
    covariance = np.eye(2)
    for step, (t, s) in enumerate(itertools.pairwise(levels)):
        matrix, _, variance = ancestral_step(np.zeros(2), np.diag(WIDTHS**2), float(t), float(s))
        noise = variance * (1 + (np.exp(s) - np.exp(t)) * v[step])
        covariance = matrix @ covariance @ matrix.T + np.diag(noise)
    return np.diag(covariance)


@pytest.mark.parametrize("exact", [True, False])
def test_samples_of_five_steps_have_the_data_s_covariance(exact):
    """With the exact v they have that of α x + σ ε; with v = 0 a known one, too small."""
    levels = np.asarray([-9.0, -3.0, -1.0, 0.5, 1.5, 3.0])
    v = WIDTHS**2 / (1 + np.exp(levels[:-1, None]) * WIDTHS**2)
    a, s = scales(3.0)
    target = a**2 * WIDTHS**2 + s**2
    expected = covariance_of(levels, v if exact else np.zeros_like(v))
    if exact:  # a check of the oracle: N(0, I) is not quite the law of z_1
        np.testing.assert_allclose(expected, target, rtol=1e-3)
    else:
        assert np.all(expected < 0.9 * target)
    model = VDM(linear(3.0, -9.0), Shrunk(), gaussian(0.1))
    params = {"schedule": {"ends": {}, "shape": {}}, "network": {"gain": jnp.asarray(1.0)}}
    chain = few_steps.Chain(levels, few_steps.Table(v) if exact else None)
    draw = jax.jit(lambda key: model.sample(params, key, (20001, 2), chain=chain))
    z_0 = a * np.asarray(draw(jax.random.key(0)))  # a Gaussian likelihood decodes z_0/α
    found = z_0[:, :, None] * z_0[:, None, :]
    assert within(found, np.diag(expected), 4) and within(z_0, 0.0, 4)
