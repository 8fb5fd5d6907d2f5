"""The optimiser: a group for the network, one for a schedule's learned ends, one for its shape.

A network of the number of points, where there is one, has the network's optimiser in a group of its
own. Network and ends are clipped each by its own norm, so that a large gradient of one cannot
starve the other, and only the network's weight matrices decay. The shape is not clipped: the
gradient of the variance is rarely large, and when it is large, it shows where λ is drawn too
rarely; clipped, the density there falls further and the variance diverges.
"""

import jax
import jax.numpy as jnp
import optax

from vdm.model import Params
from vdm.networks import stacked
from vdm.run.config import OptimizerConfig, own
from vdm.run.config.blocks import partial
from vdm.run.config.words import OPTIMIZERS
from vdm.run.errors import UserError, as_user_error

# What the methods of this package take from other keys of the config.
OF_THE_CONFIG = ("learning_rate", "b1", "b2", "weight_decay")


def build(
    config: OptimizerConfig, num_steps: int, *, number_network: bool = False
) -> optax.GradientTransformation:
    """Return the optimiser for parameters laid out as `VDM.init` gives them.

    Those of a `number_network` are among them where that is said. Raises UserError for a method
    that cannot be made.
    """
    network = _clipped(config, _of_network(config, num_steps))
    ends_rate = learning_rate(config, config.schedule_learning_rate, num_steps)
    shape_rate = learning_rate(config, config.shape_learning_rate, num_steps)
    groups = {
        "network": network,
        "ends": _clipped(config, optax.adam(ends_rate, b1=config.b1, b2=config.b2)),
        # A long memory, for the same reason: a rare gradient must not be forgotten in between.
        "shape": optax.adam(shape_rate, b1=config.b1, b2=0.999),
    }
    if number_network:  # only then: its state is a part of every checkpoint
        groups["number_law"] = network
    return optax.partition(groups, param_labels=_groups)


def learning_rate(config: OptimizerConfig, peak: float, num_steps: int) -> optax.Schedule:
    """Return the rate at each step: linear warm-up from 0, then constant or a cosine to 0."""
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    if config.decay == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, num_steps - config.warmup_steps))
    else:
        after = optax.constant_schedule(peak)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def ema_decay(config: OptimizerConfig, step: jax.Array) -> jax.Array:
    """Return min(decay, (1 + n)/(10 + n)): a short memory while there is little to remember."""
    return jnp.minimum(config.ema_decay, (1.0 + step) / (10.0 + step))


def _of_network(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Return the optimiser that config.method names; raises UserError where it cannot be made."""
    rate = learning_rate(config, config.learning_rate, num_steps)
    if config.method == {"name": "adamw"}:
        return optax.adamw(
            rate,
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            # Biases and normalisation scales are vectors: shrinking them only biases.
            mask=lambda params: jax.tree.map(lambda axes: axes > 1, stacked.num_axes(params)),
        )
    key, name = "optimizer.method", config.method["name"]
    if name == "muon":
        with as_user_error(f"{key} (muon)"):
            return partial(key, config.method, OPTIMIZERS, left_out=OF_THE_CONFIG)(
                learning_rate=rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay
            )
    if not own.is_own(name):
        raise UserError(
            f"{key} {name!r} takes its numbers from optimizer.b1 and the like: got more"
        )
    make = partial(key, config.method, OPTIMIZERS, left_out=("learning_rate",))
    with as_user_error(f"{key} ({name})"):
        made = make(learning_rate=rate)
    if not isinstance(made, optax.GradientTransformation):
        raise UserError(
            f"{key} is {name!r}, which makes {type(made).__name__}: expected an optimiser of optax"
        )
    return made


def _groups(params: Params) -> Params:
    # The labels are a prefix of the parameter tree: one per subtree.
    of_schedule = {"ends": "ends", "shape": "shape"}
    return {name: of_schedule if name == "schedule" else name for name in params}


def _clipped(
    config: OptimizerConfig, transformation: optax.GradientTransformation
) -> optax.GradientTransformation:
    if config.clip_norm == 0:
        return transformation
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), transformation)
