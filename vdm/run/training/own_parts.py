"""Whether the user's own parts are fit, tried with a few examples before anything is trained.

Shapes can be traced. That examples do not mix, that λ falls, and that numbers are finite has to be
computed, which is done for own parts alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vdm.model import VDM, Params
from vdm.run.config import Config, own
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError, as_user_error

EXAMPLES = 3
TOLERANCE = 1e-4  # of float32, with other numbers in the rest of the batch


def check(config: Config, model: VDM, condition: Condition, data: Dataset) -> None:
    """Raise UserError for an own part that is not fit: schedule, likelihood or network."""
    named = {
        "schedule": check_schedule,
        "likelihood": check_likelihood,
        "network": check_network,
    }
    index = np.arange(EXAMPLES) % len(data)
    x = data.take(index).x
    for part, check_part in named.items():
        name = getattr(config.model, part)["name"]
        if own.is_own(name):
            with as_user_error(f"model.{part} ({name})"):
                check_part(model, x, condition.of_samples(index), f"model.{part} ({name})")


def check_schedule(model: VDM, x: np.ndarray, cond: np.ndarray | None, what: str) -> None:
    """Raise UserError unless λ falls from log_snr_max to log_snr_min, and `inverse` inverts it."""
    schedule, t = model.schedule, jnp.linspace(0.0, 1.0, 33)
    params = schedule.init(jax.random.key(0))
    if set(params) != {"ends", "shape"}:
        raise UserError(f"{what}: init must return {{'ends': ..., 'shape': ...}}: got {params}")
    found = schedule.log_snr(params, t)
    if found.shape != t.shape or not bool(jnp.all(jnp.diff(found) < 0)):
        raise UserError(f"{what}: λ(t) must fall for t from 0 to 1, one for each time: got {found}")
    ends = (schedule.log_snr_max, schedule.log_snr_min)
    if not np.allclose((found[0], found[-1]), ends, atol=1e-3):
        raise UserError(
            f"{what}: λ(0) and λ(1) are {found[0]:.4f} and {found[-1]:.4f}, but log_snr_max and "
            f"log_snr_min say {ends[0]} and {ends[1]}"
        )
    if not np.allclose(schedule.inverse(params, found), t, atol=1e-3):
        raise UserError(f"{what}: inverse(λ(t)) must be t")


def check_likelihood(model: VDM, x: np.ndarray, cond: np.ndarray | None, what: str) -> None:
    """Raise UserError unless what is encoded is decoded to data, with a finite log p(x|z₀)."""
    likelihood = model.likelihood
    z = likelihood.encode(jnp.asarray(x))
    if z.shape != x.shape or not jnp.issubdtype(z.dtype, jnp.floating):
        raise UserError(
            f"{what}: encode must return real numbers of shape {list(x.shape)}: got {z.dtype} "
            f"{list(z.shape)}"
        )
    level = jnp.float32(model.schedule.log_snr_max)
    log_prob, decoded = likelihood.log_prob(jnp.asarray(x), z, level), likelihood.decode(z, level)
    if log_prob.shape != x.shape[:1] or not bool(jnp.all(jnp.isfinite(log_prob))):
        raise UserError(
            f"{what}: log_prob must return a finite number of nats for each of {len(x)} examples: "
            f"got {log_prob}"
        )
    if decoded.shape != x.shape:
        raise UserError(
            f"{what}: decode must return data of shape {list(x.shape)}: got {list(decoded.shape)}"
        )


def check_network(model: VDM, x: np.ndarray, cond: np.ndarray | None, what: str) -> None:
    """Raise UserError unless the output has z's shape, is finite, and is each example's own."""
    params = model.init(jax.random.key(0), x, cond)
    network = _stirred(params["network"])
    key_z, key_other = jax.random.split(jax.random.key(1))
    z = jax.random.normal(key_z, x.shape)
    levels = jnp.linspace(model.schedule.log_snr_max, model.schedule.log_snr_min, len(x))
    apply = _applied(model, network, cond)
    output = apply(z, levels)
    if output.shape != z.shape or not jnp.issubdtype(output.dtype, jnp.floating):
        raise UserError(
            f"{what}: the output must be real numbers of z's shape, {list(z.shape)}: got "
            f"{output.dtype} {list(output.shape)}"
        )
    if not bool(jnp.all(jnp.isfinite(output))):
        raise UserError(
            f"{what}: the output is not finite for standard normal z and λ from "
            f"{levels[-1]:g} to {levels[0]:g}"
        )
    # Another first example, and another level for it.
    z = z.at[0].set(3.0 * jax.random.normal(key_other, x.shape[1:]))
    again = apply(z, levels.at[0].set(levels[-1]))
    moved = float(jnp.max(jnp.abs((again - output)[1:]))) if len(x) > 1 else 0.0
    if moved > TOLERANCE * (1.0 + float(jnp.max(jnp.abs(output)))):
        raise UserError(
            f"{what}: examples mix: the output for one changes by {moved:.3g} where another "
            "example of the batch changes. Bound, likelihood and code need each example's own"
        )


def _applied(
    model: VDM, network: Params, cond: np.ndarray | None
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return the network's own function of z and λ; compiled once."""
    given = None if cond is None else jnp.asarray(cond)

    @jax.jit
    def apply(z: jax.Array, log_snr: jax.Array) -> jax.Array:
        return model.network.apply({"params": network}, z, log_snr, given, train=False)  # type: ignore[return-value]

    return apply


def _stirred(params: Params) -> Params:
    """Return parameters none of which is zero: a last layer that starts at 0 would hide all."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), max(1, len(leaves)))
    noise = [0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=False)]
    return jax.tree.unflatten(
        structure, [leaf + n.astype(leaf.dtype) for leaf, n in zip(leaves, noise, strict=True)]
    )
