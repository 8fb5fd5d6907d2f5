"""Integers that follow from their conditions but for Gaussian noise, and the denoiser of them.

v_i = μ_class + a u + w f_i + S n_i at each of six positions i, with u and f_i the conditions less
their mean and over their standard deviation, is rounded to 256 levels of [−1, 1]. So the bits of an
example are those of Gaussian cells. The denoiser is the mean of the levels given z, of a law whose
cells are a density of variance S² + Δ²/12, which costs less than 0.001 bits.
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


def bits_without_field(arrays):
    """−log2 P(x) of every example, per dimension, where only the law of the field is known."""
    low = 2.0 * arrays["x"][..., 0] / LEVELS - 1.0
    law = stats.norm(0.0, np.sqrt(S**2 + W**2))
    return -np.log2(law.cdf(low + 2 / LEVELS) - law.cdf(low)).mean(1)


@functools.lru_cache
def network(kinds=(), vector=((), ()), field=((), ()), optional=False):
    """The denoiser, given standardised vectors and fields: their (means, deviations).

    An optional one is of the field alone, without which the positions are independent, too.
    """

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
        variance = VARIANCE + jnp.zeros_like(flat)
        if optional:
            variance = variance + W**2 * (jnp.isnan(middle) if cond is not None else 1.0)
            middle = jnp.nan_to_num(middle)
        v = (2 * jnp.arange(LEVELS, dtype=z.dtype)[None, None] + 1) / LEVELS - 1
        near = -((flat[..., None] - jnp.sqrt(alpha2)[..., None] * v) ** 2)
        logits = near / (2 * sigma2[..., None])
        logits -= (v - middle[..., None]) ** 2 / (2 * variance[..., None])
        x_hat = jnp.sum(jax.nn.softmax(logits, axis=-1) * v, axis=-1)
        found = (flat - jnp.sqrt(alpha2) * x_hat) / jnp.sqrt(sigma2)
        return (found + zero)[..., None].astype(z.dtype)

    sizes = {
        "num_classes": 3 if "label" in kinds else None,
        "cond_dim": 1 if "vector" in kinds else None,
        "cond_channels": 1 if "field" in kinds else None,
    }
    return from_apply(init, apply, **sizes, optional_cond=optional)
