"""Any DDPM chain as a schedule: λ at its steps, linear between them."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vdm.schedules.base import Params, check_ends, fixed_params


@dataclasses.dataclass(frozen=True)
class PiecewiseLinear:
    """λ at N even times, linear between; see `from_betas`."""

    log_snrs: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.log_snrs) < 2:
            raise ValueError(f"a chain needs at least 2 noise levels: got {len(self.log_snrs)}")
        for first, second in zip(self.log_snrs, self.log_snrs[1:], strict=False):
            check_ends(first, second)

    @property
    def log_snr_max(self) -> float:
        return self.log_snrs[0]

    @property
    def log_snr_min(self) -> float:
        return self.log_snrs[-1]

    def init(self, key: Key[Array, ""]) -> Params:
        del key
        return fixed_params()

    def log_snr(self, params: Params, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        del params
        levels = jnp.asarray(self.log_snrs, t.dtype)
        last = len(self.log_snrs) - 1
        # floor, not interp: the rate at a step is that of the interval which begins there.
        index = jnp.clip(jnp.floor(t * last), 0, last - 1)
        i = index.astype(int)
        part = t * last - index
        return (1.0 - part) * levels[i] + part * levels[i + 1]

    def inverse(self, params: Params, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        del params
        rising = jnp.asarray(self.log_snrs[::-1], log_snr.dtype)
        return jnp.interp(log_snr, rising, jnp.linspace(1.0, 0.0, len(self.log_snrs)))


def from_betas(betas: Sequence[float] | np.ndarray) -> PiecewiseLinear:
    """Return the schedule of a DDPM chain, λ(i/(N − 1)) = logit Π_{j ≤ i+1} (1 − β_j).

    N variances β make N latents; the first is our z_0 and the last our z_1, so the chain's
    steps are those of num_steps = N − 1 (Ho et al. 2020, section 2).
    Raises ValueError for fewer than two betas or one outside (0, 1).
    """
    values = np.asarray(betas, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"a chain needs a list of at least 2 betas: got shape {values.shape}")
    if not np.all((values > 0) & (values < 1)):
        wrong = values[~((values > 0) & (values < 1))][0]
        raise ValueError(f"every beta must lie between 0 and 1: got {wrong}")
    log_alpha_squared = np.cumsum(np.log1p(-values))
    # logit ᾱ = log ᾱ − log(1 − ᾱ)
    log_snrs = log_alpha_squared - np.log(-np.expm1(log_alpha_squared))
    return PiecewiseLinear(tuple(float(value) for value in log_snrs))
