"""Weightings: each is what its first authors did, schedule, head and loss, seen per level.

The original objectives are summed over a fine grid of their own time or noise variable
and collected in bins of λ. What a head's error is in terms of ε is not looked up: it is
measured on one example with a denoiser that is off by a known amount.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from oracles import arrays, interval
from vdm import weightings

EDGES = np.linspace(-6.0, 7.0, 27)
X, EPS, OFF = arrays(0, (3, 1)), arrays(1, (3, 1)), arrays(2, (3, 1))
EVEN = (np.arange(400_000) + 0.5) / 400_000
GAMMA = 5.0


def square(error):
    return np.sum(error**2, 0)


def per_eps(true, guess):
    """A head's squared error over that of ε."""
    return square(guess - true) / square(OFF)


def cosine(t=EVEN):
    """α, σ and ẑ of Nichol & Dhariwal, with the x̂ that belongs to ε̂ = ε + OFF."""
    a, s = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
    return a, s, X - s * OFF / a


def on_cosine(weight):
    """Uniform t on the cosine schedule: λ, and weight(SNR, error of ε, of x, of v)."""
    a, s, x_hat = cosine()
    v, v_hat = a * EPS - s * X, a * (EPS + OFF) - s * x_hat
    errors = per_eps(EPS, EPS + OFF), per_eps(X, x_hat), per_eps(v, v_hat)
    return np.log(a**2 / s**2), weight(a**2 / s**2, *errors)


def flow_matching():
    """Uniform t on z = (1 − t) x + t ε, the network guessing the velocity ε − x."""
    z = (1 - EVEN) * X + EVEN * EPS
    x_hat = (z - EVEN * (EPS + OFF)) / (1 - EVEN)
    return 2 * np.log((1 - EVEN) / EVEN), per_eps(EPS - X, EPS + OFF - x_hat)


def edm(sigma_data=0.5, mean=-1.2, std=1.2):
    """ln ς ~ N(−1.2, 1.2²), loss (ς² + σ_d²)/(ς σ_d)² ‖D(x + ς n) − x‖²."""
    noise = np.exp(stats.norm.ppf(EVEN, mean, std))
    denoised = X + noise * EPS - noise * (EPS + OFF)
    weight = (noise**2 + sigma_data**2) / (noise * sigma_data) ** 2
    return -2 * np.log(noise), weight * per_eps(X, denoised)


def sid2(bias):
    """Hoogeboom et al. 2024: −dλ/dt e^b sigmoid(λ − b) ‖x − x̂‖², here on the cosine."""
    a, s, x_hat = cosine()
    log_snr = np.log(a**2 / s**2)
    rate = -np.gradient(log_snr, EVEN)
    return log_snr, rate * np.exp(bias) / (1 + np.exp(bias - log_snr)) * per_eps(X, x_hat)


CASES = {
    "simple": (weightings.simple, on_cosine(lambda snr, eps, x, v: eps)),
    "v": (weightings.v, on_cosine(lambda snr, eps, x, v: v)),
    "flow matching": (weightings.v, flow_matching()),
    "edm": (weightings.edm, edm()),
    "edm of other data": (
        lambda lam: weightings.edm(lam, 1.0, 3.0, 1.5),
        edm(1.5, -0.5, 1.5),
    ),
    "min-snr": (
        weightings.min_snr,
        on_cosine(lambda snr, eps, x, v: np.minimum(snr, GAMMA) * x),
    ),
    "min-snr of 2": (
        lambda lam: weightings.min_snr(lam, 2.0),
        on_cosine(lambda snr, eps, x, v: np.minimum(snr, 2.0) * x),
    ),
    "soft min-snr": (
        lambda lam: weightings.min_snr(lam, soft=True),
        on_cosine(lambda snr, eps, x, v: snr * GAMMA / (snr + GAMMA) * x),
    ),
    "p2": (weightings.p2, on_cosine(lambda snr, eps, x, v: eps / (1 + snr))),
    "p2 of 3 and 1/2": (
        lambda lam: weightings.p2(lam, 3.0, 0.5),
        on_cosine(lambda snr, eps, x, v: eps / (3 + snr) ** 0.5),
    ),
    "sigmoid": (weightings.sigmoid, sid2(0.0)),
    "sigmoid of -3": (lambda lam: weightings.sigmoid(lam, -3.0), sid2(-3.0)),
}


def per_bin(weighting):
    """∫ w dλ over each bin."""
    rules = [interval(12, *edge) for edge in itertools.pairwise(EDGES)]
    return np.array([weights @ np.asarray(weighting(jnp.asarray(at))) for at, weights in rules])


@pytest.mark.parametrize("name", CASES)
def test_weight_is_that_of_the_original_objective(name):
    weighting, (log_snr, loss) = CASES[name]
    original, _ = np.histogram(log_snr, EDGES, weights=np.broadcast_to(loss, log_snr.shape))
    ours = per_bin(weighting)
    np.testing.assert_allclose(ours / ours.sum(), original / original.sum(), rtol=3e-3)


def test_elbo_weighs_every_level_alike():
    np.testing.assert_array_equal(weightings.elbo(jnp.asarray(EDGES)), np.ones(27))


@pytest.mark.parametrize("arguments", [(), (2.4, 2.0, 0.25), (-1.0, 1.0, 1.0)])
def test_monotone_edm_is_edm_held_at_its_peak(arguments):
    log_snr = np.linspace(-20, 20, 20_001)
    plain = np.asarray(weightings.edm(jnp.asarray(log_snr), *arguments))
    held = np.asarray(weightings.edm_monotone(jnp.asarray(log_snr), *arguments))
    peak = plain.argmax()
    assert 0 < peak < 20_000 and np.all(np.diff(plain[:peak]) > 0)
    np.testing.assert_allclose(held[:peak], plain[peak], rtol=1e-5)
    np.testing.assert_allclose(held[peak:], plain[peak:], rtol=1e-5)
    assert np.all(np.diff(held) <= 1e-6 * plain[peak])


@pytest.mark.parametrize("arguments", [(9.4, 4.0, 0.5), (3.1, 3.0, 2.0)])
def test_two_peaks_of_edm_are_refused(arguments):
    plain = np.asarray(weightings.edm(jnp.linspace(-30, 30, 60_001), *arguments))
    assert np.sum(np.diff(np.sign(np.diff(plain))) == -2) == 2
    with pytest.raises(ValueError, match=f"two peaks for mean={arguments[0]}, std={arguments[1]}"):
        weightings.edm_monotone(jnp.zeros(3), *arguments)


@pytest.mark.parametrize(
    "weighting", [weightings.elbo, weightings.v, weightings.edm_monotone, weightings.sigmoid]
)
def test_averages_of_bounds_never_rise(weighting):
    weight = np.asarray(weighting(jnp.linspace(-20, 20, 2001)))
    assert np.all(np.diff(weight) <= 1e-6 * weight[:-1])


@pytest.mark.float32
@pytest.mark.parametrize(
    "name", ["elbo", "simple", "v", "edm", "edm_monotone", "min_snr", "p2", "sigmoid"]
)
def test_weights_are_finite_and_exact_in_float32(name):
    log_snr = np.linspace(-13.3, 13.3, 101, dtype=np.float32)
    single = getattr(weightings, name)(jnp.asarray(log_snr))
    assert single.dtype == jnp.float32
    with jax.enable_x64(True):
        double = getattr(weightings, name)(jnp.asarray(log_snr, jnp.float64))
    np.testing.assert_allclose(single, double, rtol=1e-5)
