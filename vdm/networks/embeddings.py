"""What a network is given besides z: how noisy z is, z's finest digits, and a condition.

The functions that make parameters are called inside a module's compact `__call__`, so
their layers are children of that module.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm.condition import Conditions
from vdm.networks.condition import Kinds
from vdm.networks.fields import DTypeLike

# Fastest and slowest angular frequency of the embedding of t in [0, 1] differ by this
# factor; both constants are those of DDPM, for 1000 integer time steps.
FREQUENCY_RATIO = 1e4
STEPS = 1000.0


def sinusoidal(t: Float[Array, " b"], features: int) -> Float[Array, " b features"]:
    """Return sines, then cosines, of 1000 t at `features // 2` frequencies each.

    The frequencies fall geometrically from 1 to 1e-4; an odd number of features is
    padded with one zero (Ho et al. 2020, after Vaswani et al. 2017). t has shape [b].
    Raises ValueError for fewer than four features.
    """
    if features < 4:
        raise ValueError(f"a sinusoidal embedding needs at least 4 features: got {features}")
    half = features // 2
    frequencies = jnp.exp(-math.log(FREQUENCY_RATIO) / (half - 1) * jnp.arange(half, dtype=t.dtype))
    angles = STEPS * t[:, None] * frequencies[None, :]
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, features % 2)))


def fourier_features(
    z: Float[Array, " *b c"], exponents: Sequence[int | float]
) -> Float[Array, " *b features"]:
    """Return sin(2π 2ⁿ z), then cos(2π 2ⁿ z), for every n in `exponents`.

    Shape [..., c] becomes [..., 2·c·len(exponents)]: all sines before all cosines, and
    within each the frequencies of the first channel before those of the second. They
    let a network see differences of single grey levels (VDM, appendix C).
    """
    turns = jnp.stack([2.0**n * z for n in exponents], axis=-1)
    turns = turns.reshape(*z.shape[:-1], -1)
    # For whole n, 2ⁿ z is exact in binary and so is taking off whole turns: the angle of
    # sin and cos then stays within ±π, where 2π 2ⁿ z would have lost three digits.
    angles = 2.0 * math.pi * (turns - jax.lax.stop_gradient(jnp.round(turns)))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def embed(
    log_snr: Float[Array, " b"],
    given: Conditions,
    kinds: Kinds,
    *,
    features: int,
    hidden: int,
    log_snr_max: float,
    log_snr_min: float,
    dtype: DTypeLike,
) -> Float[Array, " b hidden"]:
    """Return the embedding of noise level, class and vector that every block is given.

    λ is normalised to t = (λ_max − λ)/(λ_max − λ_min), which may leave [0, 1]; its
    sinusoid and the conditions (a learned vector for each class, and the float vector as
    it is; a learned vector for none) are concatenated and go through `dense0` and
    `dense1`, each with swish (VDM, appendix B). `given` has been checked. Makes parameters in the
    calling module.
    """
    level = sinusoidal((log_snr_max - log_snr) / (log_snr_max - log_snr_min), features)
    h = joined([level, *of_example(given, kinds, features)], dtype)
    h = nn.swish(nn.Dense(hidden, dtype=dtype, name="dense0")(h))
    return nn.swish(nn.Dense(hidden, dtype=dtype, name="dense1")(h))


def of_example(given: Conditions, kinds: Kinds, features: int) -> list[Array]:
    """Return what a network is told of an example's class and of its vector, [b, ...] each.

    A class is a learned vector of `features` numbers, and so is none; a vector is itself, or what
    was learned for none. `given` has been checked; under jit an unknown class is NaN. Makes
    parameters in the calling module.
    """
    parts = []
    if given.label is not None and kinds.num_classes is not None:
        # Unit variance, like the sinusoid that it is concatenated with.
        table = nn.Embed(
            kinds.num_classes + kinds.optional,
            features,
            embedding_init=nn.initializers.normal(1.0),
            name="class_embed",
        )
        label = jnp.asarray(given.label)
        of_class = table(jnp.where(label < 0, kinds.num_classes, label))
        known = (label >= -1 * kinds.optional) & (label < kinds.num_classes)
        parts.append(jnp.where(known[:, None], of_class, jnp.nan))
    if given.vector is not None:
        parts.append(_or_none(given.vector, kinds, "no_cond_embed"))
    return parts


def joined(parts: Sequence[Array], dtype: DTypeLike) -> Float[Array, " b features"]:
    """Return the parts side by side in a compute dtype."""
    return jnp.concatenate([part.astype(dtype) for part in parts], axis=-1)


def of_field(field: Float[Array | np.ndarray, " b *d c"], kinds: Kinds) -> Float[Array, " b *d c"]:
    """Return the field to concatenate with z: itself, or learned channels for none."""
    return _or_none(field, kinds, "no_field_embed")


def inputs(
    z: Float[Array, " b *d c"],
    field: Float[Array | np.ndarray, " b *d e"] | None,
    exponents: Sequence[int | float],
    kinds: Kinds,
    estimate: Float[Array, " b *d c"] | None = None,
) -> Float[Array, " b *d features"]:
    """Return the channels of z, its `fourier_features`, the field or what was learned for none, x̂.

    The last is an `estimate` of x, if there is one. In z's own precision: bfloat16 would round away
    what the features show. Makes parameters in the calling module.
    """
    parts = [z]
    if exponents:
        parts.append(fourier_features(z, exponents))
    if field is not None:
        parts.append(of_field(field, kinds).astype(z.dtype))
    if estimate is not None:
        parts.append(estimate)
    return jnp.concatenate(parts, axis=-1)


def _or_none(part: Array | np.ndarray, kinds: Kinds, name: str) -> Array:
    """Return floats [b, ..., c], those of an example of nothing but NaN as what was learned."""
    part = jnp.asarray(part)
    if not kinds.optional:
        return part
    learned = nn.Embed(1, part.shape[-1], name=name)(jnp.zeros(part.shape[:1], int))
    absent = jnp.all(jnp.isnan(part), axis=range(1, part.ndim), keepdims=True)
    return jnp.where(absent, jnp.expand_dims(learned, range(1, part.ndim - 1)), part)
