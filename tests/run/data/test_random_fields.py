"""Gaussian random fields: their spectrum, and an entropy that the exact denoiser reaches."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import within
from vdm import schedules
from vdm.likelihoods import gaussian
from vdm.model import VDM
from vdm.networks import from_apply
from vdm.run.data import random_fields

SHAPES = [(12,), (6, 5), (4, 3, 5)]


def many(spectrum, num, seed=0):
    spectra = np.broadcast_to(spectrum, (num, *spectrum.shape))
    return random_fields.draw(np.random.default_rng(seed), spectra)


def dense(spectrum):
    """The covariance [d, d] of a field's values: the transform of P(k) at their distance."""
    places = np.stack(np.meshgrid(*map(np.arange, spectrum.shape), indexing="ij"), -1)
    places = places.reshape(-1, spectrum.ndim)
    distance = places[:, None] - places[None, :]
    # Σ_k P(k) e^{2πi k·(r − r')/n} / d, as a plain sum over every k.
    phase = np.einsum("abi,ki->abk", distance, places / np.array(spectrum.shape))
    found = np.einsum("abk,k->ab", np.exp(2j * np.pi * phase), spectrum.ravel())
    assert np.abs(found.imag).max() < 1e-9
    return found.real / spectrum.size


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_entropy_is_that_of_the_dense_covariance(shape):
    spectrum = random_fields.power(shape, k0=1.5, slope=1.3, floor=0.1)
    sign, log_det = np.linalg.slogdet(2 * np.pi * np.e * dense(spectrum))
    assert sign == 1
    assert random_fields.entropy(spectrum) == pytest.approx(0.5 * log_det / spectrum.size, 1e-10)
    assert random_fields.bits(spectrum) == pytest.approx(
        0.5 * log_det / spectrum.size / math.log(2), 1e-10
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_drawn_fields_have_the_spectrum(shape):
    spectrum = random_fields.power(shape, k0=1.5, slope=1.3, floor=0.1)
    x = many(spectrum, 4000)
    axes = tuple(range(1, x.ndim))
    assert within(np.abs(np.fft.fftn(x, axes=axes)) ** 2 / spectrum.size, spectrum)
    flat = x.reshape(len(x), -1)
    assert within(flat[:, :, None] * flat[:, None, :], dense(spectrum))
    assert within(x.mean(axes) * np.sqrt(x[0].size), 0.0)


def test_the_power_is_the_documented_one():
    found = random_fields.power((8, 6), k0=2.0, slope=1.5, floor=0.25)
    assert found.mean() == pytest.approx(1.0) and np.all(found > 0.25)
    # Against that of the constant mode: −3 and 1 waves.
    ratio = (found[5, 1] - 0.25) / (found[0, 0] - 0.25)
    assert ratio == pytest.approx((1 + (9 + 1) / 4) ** -1.5)
    np.testing.assert_allclose(found[1:, 1:], found[:0:-1, :0:-1])  # of −k as of k
    np.testing.assert_allclose(random_fields.power((7,), k0=2.0, floor=1.0), 1.0)


def test_each_field_can_have_its_own_spectrum():
    spectra = np.stack([random_fields.power((9,), k0=k) for k in (0.5, 4.0)])
    both = random_fields.draw(np.random.default_rng(1), spectra)
    noise = np.random.default_rng(1).normal(size=(2, 9))
    for i in range(2):
        alone = random_fields.filtered(noise[i : i + 1], np.sqrt(spectra[i]))
        np.testing.assert_allclose(both[i], alone[0], atol=1e-12)
    mean = (random_fields.entropy(spectra[0]) + random_fields.entropy(spectra[1])) / 2
    assert random_fields.entropy(spectra) == pytest.approx(mean)


@pytest.mark.parametrize("shape", [(10,), (6, 6)], ids=str)
def test_the_exact_denoiser_reaches_the_entropy(shape):
    """ε̂_k = σ z_k/(α² P(k) + σ²), by VDM.vlb, up to ½ mean log(1 + e^{−λ_max}/P(k)).

    That is what a Gaussian p(x|z_0) leaves above −log p(x), in closed form.
    """
    spectrum = random_fields.power(shape, k0=1.5, slope=1.5, floor=0.2)
    high, scale = 7.0, math.exp(-3.5)
    axes = tuple(range(1, 1 + len(shape)))

    def eps(params, z, log_snr, cond, *, train, key):
        wide = jnp.expand_dims(log_snr, range(1, z.ndim))
        a2, s2 = jax.nn.sigmoid(wide), jax.nn.sigmoid(-wide)
        gain = jnp.sqrt(s2) / (a2 * spectrum[None, ..., None] + s2)
        return jnp.fft.ifftn(gain * jnp.fft.fftn(z, axes=axes), axes=axes).real

    network = from_apply(lambda key, z, log_snr, cond: {}, eps)
    model = VDM(schedules.linear(high, -9.0), network, gaussian(scale), "eps")
    num = 40_000
    x = many(spectrum, num)[..., None]
    params = model.init(jax.random.key(0), x[:2])
    terms = jax.jit(model.vlb)(params, jax.random.key(1), x)
    above = 0.5 * np.mean(np.log1p(math.exp(-high) / spectrum))
    assert within(np.asarray(terms.total) / spectrum.size, random_fields.entropy(spectrum) + above)


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((), {"k0": 1.0}, r"one to three positive sizes: got \(\)"),
        ((2, 2, 2, 2), {"k0": 1.0}, "one to three positive sizes"),
        ((4, 0), {"k0": 1.0}, r"got \(4, 0\)"),
        ((4,), {"k0": 0.0}, "k0 must be positive and finite: got 0.0"),
        ((4,), {"k0": math.inf}, "k0 must be positive and finite: got inf"),
        ((4,), {"k0": 1.0, "slope": -1.0}, "slope must be positive"),
        ((4,), {"k0": 1.0, "floor": 0.0}, "floor must be above 0 and at most 1: got 0.0"),
        ((4,), {"k0": 1.0, "floor": 1.5}, "floor must be above 0"),
    ],
)
def test_what_is_no_spectrum_is_named(shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        random_fields.power(shape, **arguments)
