"""The learned schedule of the VDM paper's published models, whose ends are not pinned."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm.schedules.base import Params, bisect, check_ends, check_width

HIDDEN_STD = 0.01  # of the hidden kernels at the start


@dataclasses.dataclass(frozen=True)
class LearnedUnpinned:
    """λ falls along a monotone network that moves its ends too; see `learned_unpinned`."""

    log_snr_max: float
    log_snr_min: float
    width: int = 1024

    def __post_init__(self) -> None:
        check_ends(self.log_snr_max, self.log_snr_min)
        check_width(self.width)

    def init(self, key: Key[Array, ""]) -> Params:
        key_slope, key_weight = jax.random.split(key)
        ends = {
            "offset": jnp.asarray(float(self.log_snr_max)),
            "slope": jnp.asarray(float(self.log_snr_max - self.log_snr_min)),
            "hidden_slope": HIDDEN_STD * jax.random.normal(key_slope, (self.width,)),
            "hidden_bias": jnp.zeros((self.width,)),
            "hidden_weight": HIDDEN_STD * jax.random.normal(key_weight, (self.width,)),
        }
        return {"ends": ends, "shape": {}}

    def log_snr(self, params: Params, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        ends, times = params["ends"], t.reshape(-1, 1)
        inner = (2.0 * times - 1.0) * jnp.abs(ends["hidden_slope"])[None]
        # 2 (sigmoid(y) − ½) = tanh(y/2), which is exact for small y too.
        steps = jnp.tanh(0.5 * (inner + ends["hidden_bias"][None]))
        hidden = jnp.mean(jnp.abs(ends["hidden_weight"])[None] * steps, axis=1)
        fall = jnp.abs(ends["slope"]) * times[:, 0] + hidden
        return (ends["offset"] - fall).astype(t.dtype).reshape(t.shape)

    def inverse(self, params: Params, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        return bisect(lambda t: self.log_snr(params, t), log_snr)


def learned_unpinned(
    log_snr_max: float, log_snr_min: float, *, width: int = 1024
) -> LearnedUnpinned:
    """Return λ(t) = a − |k| t − (1/width) Σ_j |v_j| 2 (sigmoid((2t − 1)|s_j| + c_j) − ½).

    The monotone network of the published CIFAR-10 model with augmentation (google-research/vdm,
    `learnable_nnet`), for its checkpoints and for comparisons. It starts at a = log_snr_max,
    k = log_snr_max − log_snr_min, c = 0 and s, v ~ N(0, 0.01²): the ends are within about
    10⁻⁴ of the arguments, and the schedule all but linear. Every parameter moves the ends, so
    all lie in "ends" and descend the bound.

    For training `learned_monotone` is the better choice: there the ends are what the
    parameters say, and cannot drift while the interior is learned; and the interior descends
    the variance of the bound's estimate, where here it follows the bound's own gradient, which
    for the interior is noise. `inverse` is a bisection on [0, 1], without derivatives.
    Raises ValueError unless the ends are finite and in order and width is at least 1.
    """
    return LearnedUnpinned(log_snr_max, log_snr_min, width)
