"""Traces of Jacobians against forward-mode Jacobians and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import arrays, keys, within
from vdm import ode
from vdm.ode import divergence

MIX = arrays(0, (6, 6))


def network(z):
    """A nonlinear map of one example of shape [2, 3] whose Jacobian has no symmetry."""
    flat = z.reshape(-1)
    return (jnp.tanh(MIX @ flat) + 0.3 * flat[::-1] ** 2).reshape(z.shape)


def probes(key, shape, num_probes=1):
    return divergence.draw_probes(key, shape, ode.hutchinson(num_probes), jnp.float64)


def exact(shape):
    return divergence.draw_probes(jax.random.key(0), shape, "exact", jnp.float64)


@jax.jit
def traces_at(z, vectors):
    value, traces = divergence.value_and_traces(network, z, vectors)
    np.testing.assert_equal((value.shape, value.dtype), (z.shape, z.dtype))
    return traces


def test_exact_trace_is_that_of_the_jacobian():
    z = jnp.asarray(arrays(1, (2, 3)))
    jacobian = jax.jit(jax.jacfwd(network))(z).reshape(6, 6)
    assert abs(jacobian.trace() - jacobian[::-1].trace()) > 0.1
    got = traces_at(z, exact((5, 2, 3)))
    assert got.shape == (1,)
    np.testing.assert_allclose(got[0], jacobian.trace(), rtol=1e-12)


def test_mean_over_probes_is_the_trace():
    z = jnp.asarray(arrays(1, (2, 3)))
    jacobian = np.asarray(jax.jit(jax.jacfwd(network))(z)).reshape(6, 6)
    vectors = probes(jax.random.key(0), (1, 2, 3), 20001)[0]
    estimates = np.asarray(traces_at(z, vectors))
    assert estimates.shape == (20001,)
    assert within(estimates, jacobian.trace())
    # The variance of Rademacher probes, ½ Σ_{i≠j} (J + Jᵀ)²_ij (Hutchinson 1990).
    symmetric = jacobian + jacobian.T
    variance = 0.5 * np.sum((symmetric - np.diag(np.diag(symmetric))) ** 2)
    assert within((estimates - jacobian.trace()) ** 2, variance)


@jax.custom_vjp
def own_gradient(z):
    return network(z)


own_gradient.defvjp(lambda z: (network(z), z), lambda z, g: jax.vjp(network, z)[1](g))


@pytest.mark.parametrize("vectors", [None, probes(jax.random.key(0), (1, 2, 3), 4)[0]])
def test_forward_and_reverse_mode_agree(vectors):
    """A network with a gradient of its own has no forward mode, every other one takes it."""
    z = jnp.asarray(arrays(1, (2, 3)))
    run = jax.jit(divergence.value_and_traces, static_argnums=0)
    for got, expected in zip(run(own_gradient, z, vectors), run(network, z, vectors), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_allclose(run(network, z, vectors)[0], network(z), rtol=1e-12)


def test_errors_of_the_network_itself_come_through():
    def broken(z):
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        divergence.value_and_traces(broken, jnp.zeros((2, 3)), None)


@pytest.mark.parametrize("per_example", [False, True])
def test_probes_are_signs_and_every_example_has_its_own(per_example):
    key = keys(0, 49) if per_example else jax.random.key(0)
    vectors = np.asarray(probes(key, (49, 2, 3), 40))
    assert vectors.shape == (49, 40, 2, 3)
    np.testing.assert_array_equal(np.abs(vectors), 1.0)
    assert abs(vectors.mean()) < 5 / np.sqrt(vectors.size)
    rows = vectors.reshape(-1, 6)
    assert np.max(np.abs(rows.T @ rows / len(rows) - np.eye(6))) < 5 / np.sqrt(len(rows))
    assert len(np.unique(vectors.reshape(49, -1), axis=0)) == 49


def test_probes_follow_their_keys():
    batch, order = keys(1, 7), np.asarray([5, 0])
    np.testing.assert_array_equal(
        probes(batch[order], (2, 2, 3), 3), probes(batch, (7, 2, 3), 3)[order]
    )


def test_one_probe_by_default():
    key = jax.random.key(0)
    named = divergence.draw_probes(key, (5, 4), "hutchinson", jnp.float64)
    assert named.shape == (5, 1, 4)
    np.testing.assert_array_equal(named, probes(key, (5, 4)))


def test_the_exact_trace_of_many_dimensions_is_refused():
    assert exact((5, 16, 16)) is None
    with pytest.raises(
        ValueError, match=r"one product with the Jacobian per dimension.*256.*got 257"
    ):
        exact((5, 257))


def test_unknown_divergence():
    with pytest.raises(ValueError, match=r"unknown divergence 'hutchison'.*'hutchinson'"):
        divergence.draw_probes(jax.random.key(0), (5, 4), "hutchison", jnp.float64)
