"""Densities carried along the ODE, against closed forms and integrals over z."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from oracles import (
    SKEWED,
    arrays,
    exact_eps,
    interval,
    keys,
    mixture_density,
    scales,
    within,
)
from vdm import ode
from vdm.ode import integrator

MEAN = np.asarray([0.7, -0.3, 1.1])
COVARIANCE = np.asarray([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.8]])
ENDS = {"log_snr_max": 6.0, "log_snr_min": -5.0}
ROUGH = {"steps": 3, "divergence": "hutchinson"}
TIGHT = {"steps": ode.adaptive(rtol=1e-9, atol=1e-9)}


VARIANCES, DIRECTIONS = np.linalg.eigh(COVARIANCE)


def correlated_eps(z, log_snr):
    """E[ε|z] = σ (α²C + σ²I)⁻¹ (z − α m) for data N(m, C); z of shape [b, 3] or [b, 3, 1]."""
    a, s = scales(log_snr)
    mean, variances, directions = (jnp.asarray(v, z.dtype) for v in (MEAN, VARIANCES, DIRECTIONS))
    gap = z.reshape(-1, 3) - a * mean[None]
    total = (a**2 * variances + s**2)[None]
    return (s * (gap @ directions / total) @ directions.T).reshape(z.shape)


def gaussian_flow(z_0, log_snr_max, log_snr_min):
    """z_1 and log |∂z_1/∂z_0|: the flow keeps each eigendirection's standard score.

    The ODE of Gaussian data is linear, and along an eigenvector of C with variance s² it
    scales z − α m by the ratio of the standard deviations √(α²s² + σ²).
    """
    (a_0, s_0), (a_1, s_1) = scales(float(log_snr_max)), scales(float(log_snr_min))
    ratio = np.sqrt((a_1**2 * VARIANCES + s_1**2) / (a_0**2 * VARIANCES + s_0**2))
    z_1 = a_1 * MEAN + (z_0 - a_0 * MEAN) @ DIRECTIONS * ratio @ DIRECTIONS.T
    return z_1, np.log(ratio).sum()


def gaussian_log_prob(z_0, log_snr_max=6.0, log_snr_min=-5.0):
    z_1, volume = gaussian_flow(z_0, log_snr_max, log_snr_min)
    return stats.norm.logpdf(z_1).sum(-1) + volume


def points(n, seed=0):
    a, s = scales(6.0)
    noise = np.random.default_rng(seed).normal(size=(n, 3))
    return a * MEAN + noise @ np.linalg.cholesky(a**2 * COVARIANCE + s**2 * np.eye(3)).T


@functools.partial(jax.jit, static_argnums=1, static_argnames=("divergence", "steps"))
def solve(key, eps_fn, z_0, **options):
    return ode.solve(key, eps_fn, z_0, **options)


@functools.cache
def exact_solution():
    """One tight solve of Gaussian data, which several tests look at."""
    return solve(jax.random.key(0), correlated_eps, jnp.asarray(points(5)), **ENDS, **TIGHT)


def test_log_density_of_gaussian_data():
    z_0, got = points(5), exact_solution()
    np.testing.assert_allclose(got.log_prob, gaussian_log_prob(z_0), atol=1e-6)
    np.testing.assert_allclose(got.latent, gaussian_flow(z_0, 6.0, -5.0)[0], atol=1e-6)
    np.testing.assert_array_equal(got.standard_error, np.zeros(5))
    assert got.nfe.shape == (5,) and np.all(got.nfe > 0)


@pytest.mark.float32
def test_log_density_in_float32_to_the_ends_in_use():
    z_0 = points(5).astype(np.float32)
    got = solve(jax.random.key(0), correlated_eps, jnp.asarray(z_0),
                log_snr_max=13.3, log_snr_min=-13.3)  # fmt: skip
    expected = gaussian_log_prob(z_0.astype(np.float64), 13.3, -13.3)
    np.testing.assert_allclose(got.log_prob, expected, atol=1e-3)
    assert {leaf.dtype for leaf in got} == {jnp.dtype("float32"), jnp.dtype("int32")}


def test_a_float32_solve_stays_float32_under_x64():
    def run(z_0):
        return ode.solve(jax.random.key(0), lambda z, log_snr: 0.5 * z, z_0, **ENDS, steps=3)

    got = jax.eval_shape(run, jax.ShapeDtypeStruct((2, 3), jnp.float32))
    assert got.log_prob.dtype == got.latent.dtype == jnp.float32


def test_the_model_and_the_data_differ_by_the_gap_at_the_noisy_end():
    """log p − log q(z_0) is the log ratio of prior and q(z_1) where the flow ends."""
    z_0 = points(5)
    (a_0, s_0), (a_1, s_1) = scales(6.0), scales(-5.0)
    covariances = [a**2 * COVARIANCE + s**2 * np.eye(3) for a, s in ((a_0, s_0), (a_1, s_1))]
    data = stats.multivariate_normal(a_0 * MEAN, covariances[0]).logpdf(z_0)
    z_1 = gaussian_flow(z_0, 6.0, -5.0)[0]
    gap = stats.norm.logpdf(z_1).sum(1) - stats.multivariate_normal(
        a_1 * MEAN, covariances[1]
    ).logpdf(z_1)
    assert np.max(np.abs(gap)) > 0.05
    np.testing.assert_allclose(exact_solution().log_prob, data + gap, atol=1e-6)


def test_log_density_of_a_skewed_mixture():
    """With the noisy end so far out that the gap is gone, p is the density of the process."""
    z_0 = np.linspace(-2.5, 3.0, 23)[:, None]
    got = solve(jax.random.key(0), exact_eps(SKEWED), jnp.asarray(z_0),
                log_snr_max=4.0, log_snr_min=-25.0, steps=ode.adaptive(1e-8, 1e-8))  # fmt: skip
    np.testing.assert_allclose(np.exp(got.log_prob), mixture_density(SKEWED, z_0, 4.0), atol=1e-5)


def some_eps(z, log_snr):
    """No denoiser of any data."""
    return 0.6 * jnp.tanh(3 * z) + 0.2 * jnp.sin(2 * z + log_snr) - 0.3


def test_any_network_gives_a_density():
    z_0 = np.linspace(-35.0, 35.0, 3501)
    got = solve(jax.random.key(0), some_eps, jnp.asarray(z_0)[:, None], log_snr_max=2.0,
                log_snr_min=-3.0, steps=ode.adaptive(1e-7, 1e-7))  # fmt: skip
    np.testing.assert_allclose(np.trapezoid(np.exp(got.log_prob), z_0), 1.0, atol=1e-5)


def test_hutchinson_is_unbiased_and_knows_its_error():
    """401 solves of the same point, 9 probes each: their mean, and their spread.

    They are images, [401, 3, 1], for nothing is flattened.
    """
    z_0 = jnp.asarray(np.tile(points(1), (401, 1)))[..., None]
    got = solve(keys(1, 401), correlated_eps, z_0, **ENDS, divergence=ode.hutchinson(9),
                steps=ode.adaptive(1e-7, 1e-7))  # fmt: skip
    truth = gaussian_log_prob(points(1))[0]
    assert within(got.log_prob, truth)
    expected = gaussian_flow(points(1), 6.0, -5.0)[0]
    np.testing.assert_allclose(got.latent[..., 0], np.tile(expected, (401, 1)), atol=1e-5)
    assert np.std(got.log_prob) > 0.01
    assert within(np.square(got.log_prob - truth) - np.square(got.standard_error), 0.0)


@functools.cache
def rough_solution(eps_fn=correlated_eps):
    """A few steps with one probe, which several tests look at."""
    return solve(keys(0, 3), eps_fn, jnp.asarray(points(3)), **ENDS, **ROUGH)


def test_the_error_of_one_probe_is_unknown():
    got = rough_solution()
    assert np.all(np.isnan(got.standard_error)) and np.all(np.isfinite(got.log_prob))


@pytest.mark.parametrize("name", ["log_prob", "latent"])
def test_fixed_steps_converge_with_order_five(name):
    z_0 = points(5)
    exact = {"log_prob": gaussian_log_prob(z_0), "latent": gaussian_flow(z_0, 6.0, -5.0)[0]}
    errors = []
    for steps in (16, 32):
        got = solve(jax.random.key(0), correlated_eps, jnp.asarray(z_0), **ENDS, steps=steps)
        # Six evaluations of a step, and the first.
        np.testing.assert_array_equal(got.nfe, 6 * steps + 1)
        errors.append(np.linalg.norm(getattr(got, name) - exact[name]))
    assert 4.5 < np.log2(errors[0] / errors[1]) < 6.0, errors


def test_encode_and_decode_are_inverse():
    """One with adaptive steps, the other with fixed ones."""
    z_0 = points(5)
    z_1 = jax.jit(lambda z: ode.encode(correlated_eps, z, **ENDS, **TIGHT))(jnp.asarray(z_0))
    np.testing.assert_allclose(z_1, gaussian_flow(z_0, 6.0, -5.0)[0], atol=1e-6)
    back = jax.jit(lambda z: ode.decode(correlated_eps, z, **ENDS, steps=48))(z_1)
    np.testing.assert_allclose(back, z_0, atol=1e-6)
    assert np.max(np.abs(back - z_0)) > 1e-12


def test_smaller_tolerances_cost_more_and_err_less():
    z_0 = points(5)
    rough = solve(jax.random.key(0), correlated_eps, jnp.asarray(z_0), **ENDS,
                  steps=ode.adaptive(1e-3, 1e-3))  # fmt: skip
    errors = [np.max(np.abs(got.log_prob - gaussian_log_prob(z_0)))
              for got in (rough, exact_solution())]  # fmt: skip
    assert np.all(2 * rough.nfe < exact_solution().nfe)
    assert 1e-6 > errors[1] < 1e-2 * errors[0] and errors[0] < 1e-1


def test_tolerances_hold_for_the_log_density_by_itself():
    """Where z stays at 0 it has no error, and only the divergence says how small to step."""
    got = solve(
        jax.random.key(0),
        lambda z, log_snr: jnp.sin(3 * log_snr) * z,
        jnp.zeros((1, 4)),
        **ENDS,
        steps=ode.adaptive(1e-7, 1e-7),
    )
    log_snr, weights = interval(200, -5.0, 6.0)
    sigma = scales(log_snr)[1]
    volume = -weights @ (0.5 * sigma * (4 * sigma - 4 * np.sin(3 * log_snr)))
    np.testing.assert_allclose(got.log_prob, 4 * stats.norm.logpdf(0) + volume, atol=1e-5)


# Rows far out need more steps.
FAR = jnp.asarray(arrays(3, (7, 2)) * np.asarray([1, 9, 1, 60, 1, 1, 3])[:, None])


def far_solution(rows, eps_fn=some_eps):
    """Solve these rows with the keys that are theirs."""
    rows = jnp.asarray(rows)
    return solve(keys(2, 7)[rows], eps_fn, FAR[rows], **ENDS, divergence=ode.hutchinson(3))


@functools.cache
def lonely_solution():
    """Solve the second row alone, and count the calls of the network."""
    calls = []

    def counted(z, log_snr):
        jax.debug.callback(lambda _: calls.append(1), log_snr)
        return some_eps(z, log_snr)

    found = far_solution([1], counted)
    jax.effects_barrier()
    return found, len(calls)


def test_evaluations_are_counted():
    found, calls = lonely_solution()
    assert found.nfe[0] == calls > 40


def test_an_example_does_not_depend_on_its_batch():
    """Alone, in company and in another order it takes the same steps."""
    everything = far_solution(range(7))
    assert len(np.unique(everything.nfe)) > 2
    company, other_order = [4, 6, 0, 0, 2, 0, 0], [3, 5, 2, 6, 1, 0, 4]
    for rows, found in [
        ([1], lonely_solution()[0]),
        (company, far_solution(company)),
        (other_order, far_solution(other_order)),
    ]:
        for some, together in zip(found, everything, strict=True):
            np.testing.assert_allclose(some, together[jnp.asarray(rows)], rtol=1e-11)


def test_ends_may_be_traced_and_have_gradients():
    """∂ log p(z_0)/∂λ at both ends, against differences of the closed form.

    The divergence of a linear denoiser is common to all examples, which is where gradients
    through a loop over vmapped and common states have gone wrong.
    """
    z_0 = points(5)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def total(log_snr_max, log_snr_min):
        return ode.log_prob(jax.random.key(0), correlated_eps, jnp.asarray(z_0), steps=24,
                            log_snr_max=log_snr_max, log_snr_min=log_snr_min).sum()  # fmt: skip

    value, slopes = total(6.0, -5.0)
    closed = lambda *ends: gaussian_log_prob(z_0, *ends).sum()  # noqa: E731
    np.testing.assert_allclose(value, closed(6.0, -5.0), atol=1e-3)
    h = 1e-4
    np.testing.assert_allclose(slopes[0], (closed(6 + h, -5) - closed(6 - h, -5)) / (2 * h),
                               atol=1e-3)  # fmt: skip
    np.testing.assert_allclose(slopes[1], (closed(6, -5 + h) - closed(6, -5 - h)) / (2 * h),
                               atol=1e-3)  # fmt: skip


@jax.custom_vjp
def own_gradient(z, log_snr):
    return correlated_eps(z, log_snr)


own_gradient.defvjp(lambda *at: (correlated_eps(*at), at),
                    lambda at, g: jax.vjp(correlated_eps, *at)[1](g))  # fmt: skip


def test_networks_with_a_gradient_of_their_own():
    """Forward mode, which is the faster, is forbidden to them."""
    got, expected = rough_solution(own_gradient), rough_solution()
    np.testing.assert_allclose(got.log_prob, expected.log_prob, rtol=1e-11)


def test_the_older_keywords_give_equal_numbers():
    """Jitted with static arguments, as measurements of the past call it."""
    older = jax.jit(ode.solve, static_argnums=1,
                    static_argnames=("divergence", "num_probes", "num_steps"))  # fmt: skip
    got = older(keys(0, 3), correlated_eps, jnp.asarray(points(3)), **ENDS,
                divergence="hutchinson", num_probes=1, num_steps=3)  # fmt: skip
    for name, value in rough_solution()._asdict().items():
        np.testing.assert_array_equal(getattr(got, name), value)


class Small(nn.Module):
    """A convolution and a product of matrices."""

    @nn.compact
    def __call__(self, z):
        return nn.Dense(z.shape[-1])(nn.swish(nn.Conv(4, (3, 3))(z)))


def products(jaxpr):
    """Every dot and convolution, however deep."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            yield eqn
        for value in eqn.params.values():
            for leaf in jax.tree.leaves(value, is_leaf=lambda v: hasattr(v, "eqns")):
                leaf = getattr(leaf, "jaxpr", leaf)
                if hasattr(leaf, "eqns"):
                    yield from products(leaf)


@pytest.mark.float32
def test_products_are_done_in_full_float32():
    z = jnp.zeros((2, 4, 4, 1))
    params = jax.eval_shape(Small().init, jax.random.key(0), z)

    def run(params, z):
        eps_fn = lambda z, log_snr: Small().apply(params, z)  # noqa: E731
        return (
            ode.log_prob(jax.random.key(0), eps_fn, z, **ENDS),
            ode.encode(eps_fn, z, **ENDS),
            ode.decode(eps_fn, z, **ENDS),
        )

    found = list(products(jax.make_jaxpr(run)(params, z).jaxpr))
    names = [eqn.primitive.name for eqn in found]
    # ε̂ for each of the three, and its gradient for the divergence.
    assert names.count("conv_general_dilated") >= 4 and names.count("dot_general") >= 4
    assert {eqn.params["precision"] for eqn in found} == {(jax.lax.Precision.HIGHEST,) * 2}


def test_a_solve_that_does_not_end_is_nan(monkeypatch):
    monkeypatch.setattr(integrator, "MAX_STEPS", 12)
    z_0 = jnp.asarray([[0.1], [3000.0]])
    got = jax.jit(lambda z: ode.solve(jax.random.key(0), lambda z, log_snr: jnp.sin(z), z, **ENDS,
                                      steps=ode.adaptive(1e-4, 1e-4)))(z_0)  # fmt: skip
    assert np.isfinite(got.log_prob[0]) and np.isnan(got.log_prob[1])
    assert np.isfinite(got.latent[0, 0]) and np.isnan(got.latent[1, 0])


def attempt(fn=ode.solve, key=None, **options):
    options = {**ENDS, **options}
    key = jax.random.key(0) if key is None else key
    z = jnp.zeros((5, 2))
    eps_fn = pytest.fail  # nothing is evaluated
    return fn(key, eps_fn, z, **options) if fn is ode.solve else fn(eps_fn, z, **options)


@pytest.mark.parametrize("fn", [ode.solve, ode.encode, ode.decode])
def test_ends_out_of_order(fn):
    with pytest.raises(ValueError, match=r"log_snr_max must be above log_snr_min.*-5\.0"):
        attempt(fn, log_snr_max=-5.0, log_snr_min=6.0)
    with pytest.raises(ValueError, match="end points must be finite"):
        attempt(fn, log_snr_max=float("inf"))


@pytest.mark.usefixtures("unchecked")
def test_keys_that_do_not_fit():
    with pytest.raises(TypeError, match="typed key"):
        attempt(key=jnp.zeros(2, jnp.uint32))
    with pytest.raises(ValueError, match=r"\(\) or \(5,\)"):
        attempt(key=keys(0, 4))
