"""Integers that follow from their conditions but for Gaussian noise, and the denoiser of them.

v_i = μ_class + a u + w f_i + S n_i at each of six positions i, with u and f_i the conditions less
their mean and over their standard deviation, is rounded to 256 levels of [−1, 1]. So the bits of an
example, given its conditions or not, are those of Gaussian cells; and the denoiser is exact but for
the rounding, whose variance Δ²/12 is added to S².
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vdm.condition import Conditions
from vdm.networks import from_apply

LENGTH, LEVELS, S = 6, 256, 0.03
MU, A, W = np.array([-0.1, 0.0, 0.1]), 0.15, 0.12
KINDS = ("label", "vector", "field")
NAMES = dict(zip(KINDS, ("labels", "cond", "cond_field"), strict=True))
VECTOR, FIELD = (290.0, 5.0), (-3.0, 0.7)  # mean and deviation in the user's units
VARIANCE = S**2 + (2 / LEVELS) ** 2 / 12


def draw(num, kinds, seed):
    """Arrays x [n, 6, 1], labels [n], cond [n, 1] and cond_field [n, 6, 1], those of the kinds."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, num)
    label[:3] = [0, 1, 2]
    parts = {
        "label": label.astype(np.uint8),
        "vector": (VECTOR[0] + VECTOR[1] * rng.normal(size=(num, 1))).astype(np.float32),
        "field": FIELD[0] + FIELD[1] * rng.normal(size=(num, LENGTH, 1)),
    }
    own = {kind: parts[kind] for kind in kinds}
    v = mean(Conditions(**own)) + S * rng.normal(size=(num, LENGTH))
    x = np.clip(np.floor((v + 1) * LEVELS / 2), 0, LEVELS - 1).astype(np.uint8)
    return {"x": x[..., None], **{NAMES[kind]: part for kind, part in own.items()}}


def parts_of(arrays):
    return Conditions(*(arrays.get(name) for name in NAMES.values()))


def mean(given):
    total = 0.0
    if given.label is not None:
        total = total + MU[given.label][:, None]
    if given.vector is not None:
        total = total + A * (given.vector - VECTOR[0]) / VECTOR[1]
    if given.field is not None:
        total = total + W * (given.field[..., 0] - FIELD[0]) / FIELD[1]
    return total


def bits(arrays):
    """−log2 P(x | its conditions) of every example, per dimension, in closed form."""
    low = 2.0 * arrays["x"][..., 0] / LEVELS - 1.0
    law = stats.norm(mean(parts_of(arrays)), S)
    return -np.log2(law.cdf(low + 2 / LEVELS) - law.cdf(low)).mean(1)


def covariance(kinds):
    """The covariance [6, 6] of v with a vector and a field that are not known."""
    common, own = A**2 * ("vector" in kinds), VARIANCE + W**2 * ("field" in kinds)
    return common * np.ones((LENGTH, LENGTH)) + own * np.eye(LENGTH)


def bits_without(arrays):
    """−log2 P(x) of every example per dimension, of a density that is even in a cell."""
    kinds = [kind for kind in KINDS if NAMES[kind] in arrays]
    v = (2.0 * arrays["x"][..., 0] + 1) / LEVELS - 1.0
    law = stats.multivariate_normal(np.zeros(LENGTH), covariance(kinds))
    return -law.logpdf(v) / LENGTH / np.log(2.0) - np.log2(2 / LEVELS)


@functools.lru_cache
def network(kinds=(), vector=((), ()), field=((), ()), optional=False):
    """The denoiser, given standardised vectors and fields: their (means, deviations)."""

    def init(key, z, log_snr, cond):
        return {"none": jnp.zeros(1)}

    def apply(params, z, log_snr, cond, *, train, key):
        alpha2 = jax.nn.sigmoid(log_snr)[:, None]
        sigma2 = jax.nn.sigmoid(-log_snr)[:, None]
        flat, zero = z[..., 0], 0.0 * jnp.sum(params["none"])
        parts = cond if isinstance(cond, Conditions) else Conditions()
        if cond is not None and not isinstance(cond, Conditions):
            parts = Conditions(**{kinds[0]: cond})
        middle = jnp.zeros_like(flat)
        if parts.label is not None:
            middle += jnp.asarray(MU, z.dtype)[parts.label][:, None]
        if parts.vector is not None:
            user = parts.vector * vector[1][0] + (vector[0][0] - VECTOR[0])
            middle += A * user / VECTOR[1]
        if parts.field is not None:
            user = parts.field[..., 0] * field[1][0] + (field[0][0] - FIELD[0])
            middle += W * user / FIELD[1]
        gap = flat - jnp.sqrt(alpha2) * middle
        found = jnp.sqrt(sigma2) * gap / (alpha2 * VARIANCE + sigma2)
        if optional:
            values, vectors = np.linalg.eigh(covariance(kinds))
            along = flat @ vectors.astype(np.float32)
            along /= alpha2 * values[None].astype(np.float32) + sigma2
            without = jnp.sqrt(sigma2) * (along @ vectors.T.astype(np.float32))
            found = without if cond is None else jnp.where(jnp.isnan(middle), without, found)
        return (found + zero)[..., None].astype(z.dtype)

    sizes = {
        "num_classes": 3 if "label" in kinds else None,
        "cond_dim": 1 if "vector" in kinds else None,
        "cond_channels": 1 if "field" in kinds else None,
    }
    return from_apply(init, apply, **sizes, optional_cond=optional)
