"""The normaliser over levels against the plain sum over every one of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import arrays, scales
from vdm import level_sum, likelihoods

LOG_SNRS = np.linspace(-5.0, 20.0, 26)
log_sum = jax.jit(level_sum.log_sum, static_argnums=3)


def positions(levels, dtype=float):
    """Positions u inside and far outside the levels, as the nearest level and what is left."""
    u = np.concatenate(
        [
            np.linspace(-0.5, min(levels, 40) - 0.5, 23),
            [-1e3, -2.5, 0.0, 0.5, levels - 1.5, levels - 1.0, levels + 0.7, levels + 1e3],
        ]
    )
    nearest = np.clip(np.round(u), 0, levels - 1)
    return (u - nearest).astype(dtype), nearest.astype(dtype)


def dense(delta, nearest, rho2, levels):
    """log S, E[j] and E[j (j − 2δ)] by a sum over all levels in float64."""
    delta, nearest = (np.asarray(part, float)[:, None] for part in (delta, nearest))
    j = np.arange(levels)[None] - nearest
    logits = -0.5 * rho2 * j * (j - 2 * delta)
    total = np.logaddexp.reduce(logits, 1)
    probs = np.exp(logits - total[:, None])
    return total, np.sum(probs * j, 1), np.sum(probs * j * (j - 2 * delta), 1)


@pytest.mark.parametrize("levels", [2, 3, 5, 17, 256, 65536])
def test_value_and_slopes_are_those_of_the_sum_over_all_levels(levels):
    delta, nearest = positions(levels)
    grad = jax.jit(
        jax.grad(
            lambda d, r: jnp.sum(level_sum.log_sum(d, jnp.asarray(nearest), r, levels)),
            argnums=(0, 1),
        )
    )
    for log_snr in LOG_SNRS if levels < 1000 else (17.0, 20.0, 30.0):
        rho2 = math.exp(log_snr) * (2 / levels) ** 2
        value, first, second = dense(delta, nearest, rho2, levels)
        got = log_sum(delta, nearest, jnp.asarray(rho2), levels)
        np.testing.assert_allclose(got, value, rtol=1e-12, atol=1e-12)
        by_delta, by_rho2 = grad(delta, jnp.asarray(rho2))
        np.testing.assert_allclose(by_delta, rho2 * first, rtol=1e-12, atol=1e-12 * rho2)
        np.testing.assert_allclose(by_rho2, -0.5 * np.sum(second), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [1, 2, 3, 8])
@pytest.mark.parametrize("levels", [17, 256])
def test_no_level_is_missed_where_the_window_changes(width, levels):
    """Half way between two levels, where the far ones weigh most."""
    digits = math.log(levels / np.finfo(float).eps)
    delta, nearest = np.array([0.5, -0.5, 0.5]), np.array([3.0, 9.0, levels - 1.0])
    edge = 2 * digits / (width * (width + 1))
    for rho2 in (edge * (1 - 1e-9), edge, edge * (1 + 1e-9)):
        got = log_sum(delta, nearest, jnp.asarray(rho2), levels)
        expected = dense(delta, nearest, rho2, levels)[0]
        np.testing.assert_allclose(got, expected, rtol=0, atol=4e-16)


@pytest.mark.float32
@pytest.mark.parametrize("levels", [17, 256])
def test_in_float32_it_is_exact_to_float32(levels):
    delta, nearest = positions(levels, np.float32)
    for log_snr in LOG_SNRS:
        rho2 = np.float32(math.exp(log_snr) * (2 / levels) ** 2)
        got = log_sum(delta, nearest, jnp.asarray(rho2), levels)
        expected = dense(delta, nearest, float(rho2), levels)[0]
        # A term's exponent is rounded where it is not small: 2⁻²³ of what is near 1 in S.
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def nats(likelihood, x, z, log_snr):
    return jnp.sum(likelihood.log_prob(x, z, log_snr))


def plain(x, z, log_snr, levels):
    """The log-softmax over every level, as the definition has it."""
    a, s = scales(log_snr)
    a, s = (jnp.reshape(part, (-1, 1, 1)) for part in (a, s))
    values = ((2 * jnp.arange(levels) + 1) / levels - 1)[None, None]
    logits = -0.5 * ((z[..., None] - a * values) / s) ** 2
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), x[..., None], -1)
    return jnp.sum(chosen)


@pytest.mark.parametrize("levels", [5, 256])
def test_log_prob_and_its_gradient_are_the_log_softmax_s(levels):
    likelihood = likelihoods.discretised(levels)
    x = jnp.asarray(np.random.default_rng(0).integers(0, levels, (7, 11)))
    noise = arrays(1, (7, 11))
    ours = jax.jit(jax.value_and_grad(lambda z, g: nats(likelihood, x, z, g), argnums=(0, 1)))
    dense_form = jax.jit(jax.value_and_grad(lambda z, g: plain(x, z, g, levels), argnums=(0, 1)))
    for log_snr in (-5.0, 3.0, 10.9, 13.3, 18.0):
        a, s = scales(log_snr)
        z = a * likelihood.encode(x) + s * noise
        got, expected = (f(z, jnp.asarray(log_snr)) for f in (ours, dense_form))
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            # The dense form itself loses digits to its largest logit, of order e^λ.
            np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-13 * (1 + np.exp(log_snr)))


def test_a_level_for_each_example_vmap_and_forward_mode_agree():
    likelihood = likelihoods.discretised(256)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 256, (5, 3)))
    log_snr = jnp.asarray([-3.0, 2.0, 9.0, 12.0, 14.0])
    a, s = (part[:, None] for part in scales(log_snr))
    z = a * likelihood.encode(x) + s * arrays(2, (5, 3))

    def one(x, z, log_snr):
        return likelihood.log_prob(x[None], z[None], log_snr)[0]

    together = jax.jit(lambda z, g: likelihood.log_prob(x, z, g))
    each = jax.jit(lambda z, g: jax.vmap(one)(x, z, g))
    np.testing.assert_allclose(together(z, log_snr), each(z, log_snr), rtol=1e-12)
    dz, dg = arrays(3, (5, 3)), arrays(4, (5,))
    _, tangent = jax.jvp(each, (z, log_snr), (dz, dg))
    _, pull = jax.vjp(together, z, log_snr)
    by_z, by_g = pull(jnp.ones(5))
    assert np.isclose(np.sum(tangent), np.sum(by_z * dz) + np.sum(by_g * dg), rtol=1e-10)


def test_second_derivatives_are_the_log_softmax_s_in_every_mode():
    likelihood = likelihoods.discretised(5)
    x, z = jnp.asarray([[1, 4]]), jnp.asarray([[-0.3, 0.7]])

    def both(mode):
        return [
            jax.jit(mode(fn))(jnp.asarray([-0.3, 0.7, 3.0]))
            for fn in (
                lambda u: nats(likelihood, x, z.at[0].set(u[:2]), u[2]),
                lambda u: plain(x, z.at[0].set(u[:2]), u[2], 5),
            )
        ]

    for mode in (jax.hessian, lambda fn: jax.jacrev(jax.grad(fn))):
        np.testing.assert_allclose(*both(mode), rtol=1e-10, atol=1e-10)


@pytest.mark.float32
@pytest.mark.parametrize("levels", [2, 256])
def test_hardly_any_noise_and_half_precision_are_no_trouble(levels):
    likelihood = likelihoods.discretised(levels)
    x = jnp.asarray([[0], [levels - 1]])
    value = jax.jit(jax.value_and_grad(lambda z, g: nats(likelihood, x, z, g), argnums=(0, 1)))
    for log_snr in (89.0, 150.0):
        found = value(likelihood.encode(x), jnp.asarray(log_snr))
        assert all(np.all(np.asarray(leaf) == 0.0) for leaf in jax.tree.leaves(found))
    z = likelihood.encode(x).astype(jnp.bfloat16)
    half, single = (
        likelihood.log_prob(x, part, jnp.asarray(5.0)) for part in (z, z.astype(jnp.float32))
    )
    np.testing.assert_array_equal(half, single)


def test_nothing_has_an_axis_over_the_levels():
    likelihood = likelihoods.discretised(253)
    x, z = jnp.zeros((7, 11), int), jnp.zeros((7, 11))
    text = str(
        jax.make_jaxpr(jax.grad(nats, argnums=(2, 3)), static_argnums=0)(likelihood, x, z, 13.3)
    )
    assert "7,11" in text and "253]" not in text


def test_what_is_not_a_number_stays_so():
    likelihood = likelihoods.discretised(17)
    x, z = jnp.zeros((2, 1), int), jnp.asarray([[np.nan], [0.1]])
    got = likelihood.log_prob(x, z, jnp.asarray(8.0))
    assert np.isnan(got[0]) and np.isfinite(got[1])
    assert np.isnan(likelihood.log_prob(x, z, jnp.asarray(np.nan))).all()
    # A level that is none is no one else's trouble.
    z = jnp.asarray([[0.1], [0.1]])
    each = likelihood.log_prob(x, z, jnp.asarray([np.nan, 8.0]))
    assert np.isnan(each[0]) and each[1] == likelihood.log_prob(x, z, jnp.asarray(8.0))[1]
