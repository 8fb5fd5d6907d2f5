"""Periodic Gaussian random fields of a known spectrum: data whose entropy is known exactly.

The coefficients x_k of the orthonormal discrete Fourier transform of a field are independent but
for x_{−k} = x_k*, with E|x_k|² = P(k). A model is measured by how far its bits are above the
entropy.
"""

import math

import numpy as np

LARGEST_AXES = 3


def power(
    shape: tuple[int, ...], *, k0: float, slope: float = 2.0, floor: float = 0.02
) -> np.ndarray:
    """Return P(k) ∝ 1/(1 + |k|²/k0²)^slope plus a white floor, as `numpy.fft` orders k.

    k counts the waves along each of the one to three axes, from the lowest frequency, so that
    fields of several sizes look alike. The mean of P, the variance of a value, is 1, of which
    `floor` is white noise. Raises ValueError for another number of axes, an axis without values, a
    k0 or slope that is not positive and a floor outside (0, 1].
    """
    if not 1 <= len(shape) <= LARGEST_AXES or min(shape) < 1:
        raise ValueError(f"shape must be one to three positive sizes: got {shape}")
    for name, value in (("k0", k0), ("slope", slope)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite: got {value}")
    if not 0 < floor <= 1:
        raise ValueError(f"floor must be above 0 and at most 1: got {floor}")
    waves = np.meshgrid(*(size * np.fft.fftfreq(size) for size in shape), indexing="ij")
    squares = np.sum(np.square(waves), axis=0)
    smooth = (1.0 + squares / k0**2) ** -slope
    return (1.0 - floor) * smooth / smooth.mean() + floor


def draw(rng: np.random.Generator, spectra: np.ndarray) -> np.ndarray:
    """Return a field for each of the spectra P(k) [n, *shape], float64: white noise, filtered.

    `np.broadcast_to(spectrum, (n, *spectrum.shape))` is n times the same.
    """
    return filtered(rng.normal(size=spectra.shape), np.sqrt(spectra))


def filtered(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return fields [n, *shape] with the coefficient of each k multiplied by a real gain(k).

    The gain is that of all fields, [*shape], or of each, and the same for k and −k, or the result
    would not be real.
    """
    axes = tuple(range(1, x.ndim))
    return np.fft.ifftn(gain * np.fft.fftn(x, axes=axes), axes=axes).real


def entropy(spectra: np.ndarray) -> float:
    """Return E[−log p(x)] = ½ mean_k log 2πe P(k), in nats per dimension.

    Of several spectra it is the mean: the entropy of fields given which one is theirs.
    """
    return 0.5 * float(np.mean(np.log(2.0 * math.pi * math.e * spectra)))


def bits(spectra: np.ndarray) -> float:
    """Return the `entropy` in bits per dimension, which no model's expected bits are below."""
    return entropy(spectra) / math.log(2.0)
