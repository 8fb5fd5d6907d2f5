"""Checks of a network's fields and inputs, before any compute."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vdm.choices import unknown

DTYPES = ("bfloat16", "float16", "float32", "float64")
DTypeLike = str | type | np.dtype


def dtype_name(dtype: DTypeLike) -> str:
    """Return the name of a floating dtype, so that modules differing in spelling are equal.

    Raises ValueError for anything that is not one of bfloat16, float16, float32, float64.
    """
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise ValueError(unknown("dtype", name, DTYPES))
    return name


def check_positive(**sizes: int) -> None:
    """Raise ValueError naming the first size that is not a whole number of at least 1."""
    for name, size in sizes.items():
        if not (isinstance(size, int) and size >= 1):
            raise ValueError(f"{name} must be a whole number of at least 1: got {size!r}")


def check_common(
    *,
    dropout: float,
    log_snr_max: float,
    log_snr_min: float,
) -> None:
    """Raise ValueError unless the fields that all networks share are valid together."""
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1): got {dropout}")
    if not (math.isfinite(log_snr_max) and math.isfinite(log_snr_min)) or (
        not log_snr_max > log_snr_min
    ):
        raise ValueError(
            "the network's log_snr_max must be above its log_snr_min, both finite: got "
            f"log_snr_max={log_snr_max}, log_snr_min={log_snr_min}"
        )


def check_log_snr(log_snr: Array, z: Array) -> None:
    """Raise ValueError unless there is one noise level per example of z."""
    if log_snr.shape != z.shape[:1]:
        raise ValueError(
            f"a network expects one noise level per example, log_snr of shape {z.shape[:1]}: "
            f"got shape {log_snr.shape}"
        )
