"""Schedules with parameters: learned end points, and a monotone network between them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm.schedules.base import Params, between, bisect, check_ends, check_width

# Learned ends never come nearer to each other: softplus alone vanishes in rounding.
MIN_RANGE = 0.01
# The interior is never flatter than about this share of a straight line, so that times that float32
# distinguishes have levels that it distinguishes, except neighbours.
LINEAR_SHARE = 0.01
# How near to an end, in t, its nearest steps are.
NEAREST = 1e-3


@dataclasses.dataclass(frozen=True)
class LearnedLinear:
    """λ falls linearly between two learned ends; see `learned_linear`."""

    log_snr_max: float
    log_snr_min: float

    def __post_init__(self) -> None:
        check_ends(self.log_snr_max, self.log_snr_min)
        _check_range(self.log_snr_max, self.log_snr_min)

    def init(self, key: Key[Array, ""]) -> Params:
        del key
        return {"ends": _init_ends(self.log_snr_max, self.log_snr_min), "shape": {}}

    def log_snr(self, params: Params, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        return between(*_ends(params), t)

    def inverse(self, params: Params, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        log_snr_max, log_snr_min = _ends(params)
        return (log_snr_max - log_snr) / (log_snr_max - log_snr_min)


@dataclasses.dataclass(frozen=True)
class LearnedMonotone:
    """λ falls along a monotone network between pinned ends; see `learned_monotone`."""

    log_snr_max: float
    log_snr_min: float
    width: int = 1024
    learn_ends: bool = True

    def __post_init__(self) -> None:
        check_ends(self.log_snr_max, self.log_snr_min)
        if self.learn_ends:
            _check_range(self.log_snr_max, self.log_snr_min)
        check_width(self.width)

    def init(self, key: Key[Array, ""]) -> Params:
        # A hidden unit is a step of s at some t. Half of them lie anywhere; the others come
        # ever nearer to the two ends, the nearer the steeper and the lighter, for there λ may
        # have to hurry. The linear part weighs as much as all: the start is near linear.
        key_centre, key_slope = jax.random.split(key)
        u, v = (jax.random.uniform(k, (self.width,)) for k in (key_centre, key_slope))
        near_end = jnp.arange(self.width) % 2 == 0
        distance = 0.5 * NEAREST ** jnp.mod(2.0 * u, 1.0)
        centre = jnp.where(near_end, jnp.where(u < 0.5, distance, 1.0 - distance), u)
        slope = jnp.where(near_end, 2.0 * 5.0**v / distance, 3.0 * 30.0**v)
        weight = jnp.where(near_end, distance / jnp.mean(distance), 1.0)
        shape = {
            "weight": jnp.asarray(math.log(self.width)),
            "hidden_slope": slope + jnp.log(-jnp.expm1(-slope)),
            "hidden_bias": -slope * centre,
            "hidden_weight": jnp.log(weight),
        }
        ends = _init_ends(self.log_snr_max, self.log_snr_min) if self.learn_ends else {}
        return {"ends": ends, "shape": shape}

    def log_snr(self, params: Params, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        start, end = _ends(params) if self.learn_ends else (self.log_snr_max, self.log_snr_min)
        flat = t.reshape(-1)
        times = jnp.concatenate([flat, jnp.asarray([0.0, 1.0], t.dtype)])
        height = self._height(params["shape"], times)
        position = (height[:-2] - height[-2]) / (height[-1] - height[-2])
        # Sums of other rows round otherwise and x/x need not be 1: both ends are set, to the
        # last bit, and keep their slope.
        pinned = jnp.where(flat <= 0, 0.0, jnp.where(flat >= 1, 1.0, jnp.clip(position, 0.0, 1.0)))
        position = position + jax.lax.stop_gradient(pinned - position)
        return between(start, end, position.reshape(t.shape))

    def _height(self, shape: dict[str, Array], t: Float[Array, " n"]) -> Float[Array, " n"]:
        """The increasing network n(t) = w₁ t + Σ_j w₃ⱼ sigmoid(w₂ⱼ t + b₂ⱼ), all w > 0."""
        weights = jax.nn.softmax(jnp.append(shape["weight"], shape["hidden_weight"]))
        slope = jax.nn.softplus(shape["hidden_slope"])
        hidden = jax.nn.sigmoid(t[:, None] * slope[None] + shape["hidden_bias"][None])
        steps = jnp.sum(weights[None, 1:] * hidden, axis=1)
        # Where every step lies outside the interval this is a straight line, not 0/0.
        return ((LINEAR_SHARE + weights[0]) * t + steps).astype(t.dtype)

    def inverse(self, params: Params, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        return bisect(lambda t: self.log_snr(params, t), log_snr)


def learned_linear(log_snr_max: float, log_snr_min: float) -> LearnedLinear:
    """Return a linear λ(t) whose two ends are parameters, starting at the given values.

    The parameters are λ_min and the softplus-inverse of λ_max − λ_min − 0.01, so λ_max
    stays above λ_min whatever an optimiser does (VDM, appendix on the noise schedule).
    Raises ValueError unless both ends are finite and log_snr_max > log_snr_min + 0.01.
    """
    return LearnedLinear(log_snr_max, log_snr_min)


def learned_monotone(
    log_snr_max: float, log_snr_min: float, *, width: int = 1024, learn_ends: bool = True
) -> LearnedMonotone:
    """Return λ(t) = (1 − s) λ_max + s λ_min with a learned, increasing s from 0 to 1.

    s(t) = (n(t) − n(0))/(n(1) − n(0)) and n is the monotone network of the VDM paper
    (appendix on the noise schedule): a linear part and `width` sigmoids of t with positive
    slopes and weights. Here the weights are a softmax, for only their ratios matter, and the
    linear part keeps at least a hundredth. The ends are pinned whatever the shape; they are
    parameters too where `learn_ends`. Under jax.grad of the bound the interior's gradient is
    pure noise: train it with `vdm.variance.two_gradients`, as `vdm train` does.
    `inverse` is a bisection, without derivatives.
    Raises ValueError unless the ends are finite and in order and width is at least 1.
    """
    return LearnedMonotone(log_snr_max, log_snr_min, width, learn_ends)


def _check_range(log_snr_max: float, log_snr_min: float) -> None:
    if log_snr_max - log_snr_min <= MIN_RANGE:
        raise ValueError(
            f"learned ends must start more than {MIN_RANGE} apart: got "
            f"log_snr_max={log_snr_max}, log_snr_min={log_snr_min}"
        )


def _init_ends(log_snr_max: float, log_snr_min: float) -> dict[str, Array]:
    return {
        "log_snr_min": jnp.asarray(float(log_snr_min)),
        "width": jnp.asarray(_inverse_softplus(log_snr_max - log_snr_min - MIN_RANGE)),
    }


def _ends(params: Params) -> tuple[Array, Array]:
    log_snr_min = params["ends"]["log_snr_min"]
    width = MIN_RANGE + jax.nn.softplus(params["ends"]["width"])
    return log_snr_min + width, log_snr_min


def _inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))
