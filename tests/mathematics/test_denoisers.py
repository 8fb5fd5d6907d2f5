"""Denoisers made of denoisers: projections never hurt, guidance is a power of a density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import SKEWED, arrays, exact_eps, gaussian_data, mixture_density, scales
from vdm import denoisers, losses
from vdm.likelihoods import discretised


def rough(z, log_snr):
    """A denoiser whose x̂ lies inside, below and above [-1, 1]."""
    return 0.9 * jnp.sin(5 * z) + 0.3


def x_of(eps, z, log_snr):
    a, s = scales(np.asarray(log_snr, float).reshape(-1, 1))
    return (np.asarray(z) - s * np.asarray(eps)) / a


@pytest.mark.parametrize("log_snr", [1.0, np.linspace(-3.0, 5.0, 49)], ids=["scalar", "batch"])
def test_clipping_projects_what_is_predicted(log_snr):
    z, log_snr = jnp.asarray(arrays(0, (49, 3))), jnp.asarray(log_snr)
    before, after = rough(z, log_snr), denoisers.clip_denoised(rough, -0.9, 0.7)(z, log_snr)
    x_before, x_after = x_of(before, z, log_snr), x_of(after, z, log_snr)
    np.testing.assert_allclose(x_after, np.clip(x_before, -0.9, 0.7), atol=1e-10)
    inside = (x_before > -0.9) & (x_before < 0.7)
    assert 10 < inside.sum() < inside.size - 10
    np.testing.assert_array_equal(np.asarray(after)[inside], np.asarray(before)[inside])


def test_clipping_can_only_lower_the_error_of_data_within_bounds():
    likelihood = discretised(17)
    x = likelihood.encode(jnp.asarray(np.random.default_rng(1).integers(0, 17, (49, 6))))
    assert (float(jnp.min(x)), float(jnp.max(x))) == pytest.approx(likelihood.bounds, abs=1e-15)
    eps, log_snr = jnp.asarray(arrays(2, (49, 6))), jnp.linspace(-4.0, 6.0, 49)
    plain = losses.noise_error(x, eps, log_snr, rough)
    clipped = losses.noise_error(
        x, eps, log_snr, denoisers.clip_denoised(rough, *likelihood.bounds)
    )
    assert np.all(clipped <= plain) and np.mean(clipped < plain) > 0.8


@pytest.mark.parametrize("bounds", [(1.0, -1.0), (0.5, 0.5), (float("nan"), 1.0), (-1.0, np.inf)])
def test_bad_bounds(bounds):
    with pytest.raises(ValueError, match=r"finite bounds, low < high: got"):
        denoisers.clip_denoised(rough, *bounds)


@pytest.mark.parametrize("scale", [-0.5, 0.4, 1.0, 3.0])
def test_guidance_is_the_score_of_a_power_of_the_densities(scale):
    """ε̂ = −σ d/dz [(1 − w) log p(z) + w log p(z|c)], the derivative by differences."""
    all_data, one_class = SKEWED, gaussian_data((1.4,), 0.6)
    eps_fn = denoisers.guided(exact_eps(one_class), exact_eps(all_data), scale)
    z, log_snr, step = np.linspace(-2.0, 2.5, 49)[:, None], 0.7, 1e-5

    def log_density(z):
        parts = [np.log(mixture_density(data, z, log_snr)) for data in (all_data, one_class)]
        return (1 - scale) * parts[0] + scale * parts[1]

    slope = (log_density(z + step) - log_density(z - step)) / (2 * step)
    expected = -scales(log_snr)[1] * slope[:, None]
    got = jax.jit(eps_fn)(jnp.asarray(z), jnp.asarray(log_snr))
    np.testing.assert_allclose(got, expected, atol=1e-7)


def test_guidance_between_its_ends():
    """Exact at both, whatever the size of the other denoiser: it is weighed with 0."""

    def huge(z, log_snr):
        return 1e17 * z

    def conditional(z, log_snr):
        return 2.0 * z

    z, log_snr = jnp.asarray(arrays(3, (5, 2))), jnp.asarray(1.0)
    c, u = conditional(z, log_snr), rough(z, log_snr)
    np.testing.assert_array_equal(denoisers.guided(conditional, huge, 1.0)(z, log_snr), c)
    np.testing.assert_array_equal(denoisers.guided(huge, rough, 0.0)(z, log_snr), u)
    scales_of = jnp.asarray([0.0, 1.0, 0.5, 2.0, -1.0])
    each = denoisers.guided(conditional, rough, scales_of)(z, log_snr)
    expected = np.asarray(u) + np.asarray(scales_of)[:, None] * np.asarray(c - u)
    np.testing.assert_allclose(each, expected, rtol=1e-9)


def test_bad_scales():
    with pytest.raises(ValueError, match="scale must be finite: got nan"):
        denoisers.guided(rough, rough, float("nan"))
    with pytest.raises(ValueError, match=r"one value per example: got shape \(4,\)"):
        denoisers.guided(rough, rough, jnp.ones(4))(jnp.zeros((5, 2)), jnp.asarray(1.0))
