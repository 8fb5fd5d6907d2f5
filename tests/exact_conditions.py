"""Data that are linear in their conditions with Gaussian noise, and the exact denoiser of them.

x_i = w·field_i + a·vector + μ_class + S n_i at each of six positions i, so that x given its
conditions is Gaussian, with the closed form of −log p below; and so it is without them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vdm.condition import Conditions
from vdm.networks import from_apply

LENGTH, S = 6, 0.3
W, A, MU = np.array([0.02, -0.4]), np.array([0.1, -0.03]), np.array([-0.6, 0.1, 0.7])
KINDS = ("label", "vector", "field")
# In the user's units: a temperature in K and a pressure in hPa, far from zero.
VECTOR_MEAN, VECTOR_STD = np.array([290.0, 1000.0]), np.array([5.0, 20.0])
FIELD_MEAN, FIELD_STD = np.array([300.0, -2.0]), np.array([30.0, 1.0])


def draw(num, kinds, seed):
    """Examples [n, 6, 1] and what they depend on: labels, cond and cond_field, those of kinds."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, num)
    label[:3] = [0, 1, 2]
    vector = VECTOR_MEAN + VECTOR_STD * rng.normal(size=(num, 2))
    field = FIELD_MEAN + FIELD_STD * rng.normal(size=(num, LENGTH, 2))
    parts = dict(zip(KINDS, (label, vector, field), strict=True))
    given = Conditions(**{kind: parts[kind] for kind in kinds})
    x = mean(given) + S * rng.normal(size=(num, LENGTH))
    names = dict(zip(KINDS, ("labels", "cond", "cond_field"), strict=True))
    return {"x": x[..., None], **{names[kind]: parts[kind] for kind in kinds}}


def mean(given):
    """The mean of x [n, 6] given its conditions, each less the middle of its law."""
    total = 0.0
    if given.label is not None:
        total = total + MU[given.label][:, None]
    if given.vector is not None:
        total = total + ((given.vector - VECTOR_MEAN) @ A)[:, None]
    if given.field is not None:
        total = total + (given.field - FIELD_MEAN) @ W
    return total


def bits(arrays):
    """−log2 p(x | its conditions) of every example, per dimension, in closed form."""
    given = Conditions(*(arrays.get(name) for name in ("labels", "cond", "cond_field")))
    gap = arrays["x"][..., 0] - mean(given)
    return -stats.norm.logpdf(gap, scale=S).mean(1) / np.log(2.0)


def covariance():
    """The covariance of x [6, 6] under the law of vectors and fields."""
    common = np.sum((A * VECTOR_STD) ** 2)
    own = S**2 + np.sum((W * FIELD_STD) ** 2)
    return common * np.ones((LENGTH, LENGTH)) + own * np.eye(LENGTH)


def bits_without(x):
    """−log2 p(x) of every example with a vector and a field that are not known, per dimension."""
    law = stats.multivariate_normal(np.zeros(LENGTH), covariance())
    return -law.logpdf(x[..., 0]) / LENGTH / np.log(2.0)


@functools.lru_cache
def network(kinds=(), vector=((), ()), field=((), ()), optional=False):
    """The exact denoiser, given standardised vectors and fields: their (means, deviations)."""

    def init(key, z, log_snr, cond):
        return {"none": jnp.zeros(1)}

    def apply(params, z, log_snr, cond, *, train, key):
        alpha2 = jax.nn.sigmoid(log_snr)[:, None]
        sigma2 = jax.nn.sigmoid(-log_snr)[:, None]
        flat, zero = z[..., 0], 0.0 * jnp.sum(params["none"])
        if cond is None:
            parts = Conditions()
        else:
            parts = cond if isinstance(cond, Conditions) else Conditions(**{kinds[0]: cond})
        if optional:
            without = _without(flat, alpha2, sigma2)
        if cond is None and optional:
            return (without + zero)[..., None]
        middle = jnp.zeros_like(flat)
        if parts.label is not None:
            middle += jnp.asarray(MU, z.dtype)[parts.label][:, None]
        if parts.vector is not None:
            by, less = A * np.array(vector[1]), (np.array(vector[0]) - VECTOR_MEAN) @ A
            middle += (parts.vector @ by.astype(z.dtype) + less.astype(z.dtype))[:, None]
        if parts.field is not None:
            by, less = W * np.array(field[1]), (np.array(field[0]) - FIELD_MEAN) @ W
            middle += parts.field @ by.astype(z.dtype) + less.astype(z.dtype)
        gap = flat - jnp.sqrt(alpha2) * middle
        found = jnp.sqrt(sigma2) * gap / (alpha2 * S**2 + sigma2)
        if optional:
            found = jnp.where(jnp.isnan(middle), without, found)
        return (found + zero)[..., None].astype(z.dtype)

    sizes = {
        "num_classes": 3 if "label" in kinds else None,
        "cond_dim": 2 if "vector" in kinds else None,
        "cond_channels": 2 if "field" in kinds else None,
    }
    return from_apply(init, apply, **sizes, optional_cond=optional)


def _without(flat, alpha2, sigma2):
    """σ (α² C + σ²)⁻¹ z, the exact denoiser of a Gaussian of covariance C."""
    values, vectors = np.linalg.eigh(covariance())
    along = flat @ vectors.astype(flat.dtype) / (alpha2 * values[None].astype(flat.dtype) + sigma2)
    return jnp.sqrt(sigma2) * (along @ vectors.T.astype(flat.dtype))


def pixels(split):
    """Images [n, 8, 8, 1] of 17 levels, with all three kinds of conditions."""
    num = {"train": 60, "test": 20}[split]
    rng = np.random.default_rng(num)
    label, vector = np.arange(num) % 3, rng.normal([290.0, 1000.0], [5.0, 20.0], (num, 2))
    field = rng.normal(-2.0, 1.0, (num, 8, 8, 1))
    x = 4 + 3 * label[:, None, None, None] + (vector[:, :1, None, None] - 290) / 5 + 2 * field + 4
    x = np.clip(np.round(x + rng.normal(size=x.shape)), 0, 16).astype(np.uint8)
    return x, {"labels": label, "cond": vector, "cond_field": field}
