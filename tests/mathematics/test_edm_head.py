"""EDM's head: c_in, c_out and c_skip of Karras et al. (2022, table 1), around a known F."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import SKEWED_2D, Mixture, arrays, exact_eps, scales
from vdm import VDM
from vdm.likelihoods import gaussian
from vdm.schedules import linear

LOG_SNR = np.array([-9.0, -2.0, -0.3, 0.0, 1.7, 4.0, 10.0])


def coefficients(log_snr, sigma_data):
    """c_in, c_out and c_skip as functions of ς = σ/α."""
    a, s = scales(log_snr)
    noise = (s / a)[:, None]
    root = (noise**2 + sigma_data**2) ** 0.5
    return 1 / root, noise * sigma_data / root, sigma_data**2 / root**2


class ExactF(nn.Module):
    """F = (D(y; ς) − c_skip y)/c_out for the best D, seen through the input c_in y."""

    data: Mixture
    sigma_data: float
    error: float = 0.0

    @nn.compact
    def __call__(self, inputs, log_snr, cond=None, *, train):
        c_in, c_out, c_skip = coefficients(log_snr, self.sigma_data)
        a, s = (part[:, None] for part in scales(log_snr))
        y = inputs / c_in
        denoised = y - (s / a) * exact_eps(self.data)(a * y, log_snr)
        return (denoised - c_skip * y) / c_out + self.error * jnp.cos(3 * inputs)


class Constant(nn.Module):
    value: float

    @nn.compact
    def __call__(self, inputs, log_snr, cond=None, *, train):
        return jnp.full_like(inputs, self.value)


def eps_of(network, z, sigma_data):
    model = VDM(linear(13.3, -13.3), network, gaussian(0.1), "edm", sigma_data)
    params = model.init(jax.random.key(0), z)
    return np.asarray(model.denoiser(params)(jnp.asarray(z), jnp.asarray(LOG_SNR)))


@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_the_exact_f_recovers_the_exact_noise(sigma_data):
    z = arrays(0, (7, 2))
    expected = exact_eps(SKEWED_2D)(jnp.asarray(z), jnp.asarray(LOG_SNR))
    ours = eps_of(ExactF(SKEWED_2D, sigma_data), z, sigma_data)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_an_f_of_nothing_keeps_the_skip_alone(sigma_data):
    z = arrays(1, (7, 2))
    a, s = (part[:, None] for part in scales(LOG_SNR))
    _, c_out, c_skip = coefficients(LOG_SNR, sigma_data)
    for value in (0.0, 2.5):
        denoised = c_skip * z / a + c_out * value
        ours = eps_of(Constant(value), z, sigma_data)
        np.testing.assert_allclose(ours, (z - a * denoised) / s, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_errors_of_f_are_those_of_the_noise_over_c_out(sigma_data):
    """‖x − x̂‖ = c_out ‖F − F̂‖ = ς ‖ε − ε̂‖, with the target F of table 1."""
    x, eps = arrays(2, (7, 2)), arrays(3, (7, 2))
    a, s = (part[:, None] for part in scales(LOG_SNR))
    c_in, c_out, c_skip = coefficients(LOG_SNR, sigma_data)
    y = x + s / a * eps
    network = ExactF(SKEWED_2D, sigma_data, error=0.4)
    output = network.apply({}, jnp.asarray(c_in * y), jnp.asarray(LOG_SNR), train=False)
    of_f = np.asarray(output) - (x - c_skip * y) / c_out
    of_eps = eps_of(network, a * x + s * eps, sigma_data) - eps
    np.testing.assert_allclose(of_eps, -c_out * of_f / (s / a), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_inputs_and_targets_have_unit_variance(sigma_data):
    """A check of the oracle itself: what the coefficients were chosen for."""
    c_in, c_out, c_skip = coefficients(LOG_SNR, sigma_data)
    noise = np.exp(-LOG_SNR / 2)[:, None]
    np.testing.assert_allclose(c_in**2 * (sigma_data**2 + noise**2), 1)
    target = ((1 - c_skip) * sigma_data) ** 2 + (c_skip * noise) ** 2
    np.testing.assert_allclose(target / c_out**2, 1)
