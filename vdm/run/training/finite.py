"""The guard against NaN and infinity: found when metrics are read, handled as the config says."""

import jax
import jax.numpy as jnp
import numpy as np

from vdm.model import Params
from vdm.run.errors import UserError

MAX_ROLLBACKS = 3  # in a run; after so many failures other noise does not help


def problem(metrics: dict[str, np.ndarray], finite: jax.Array | None, step: int) -> str | None:
    """Return what is not finite in the metrics of the steps up to `step`, or after it, if any.

    `finite` is what `all_finite` says of the parameters, None where no checkpoint is due, which
    saves checking them.
    """
    for key in ("loss", "gradient_norm"):
        bad = ~np.isfinite(metrics[key])
        if bad.any():
            at = step - len(bad) + 1 + int(np.argmax(bad))
            return f"{key} is {metrics[key][bad][0]} at step {at}"
    # A finite loss can still lead to an update that is not.
    if finite is not None and not finite:
        return f"parameters are not finite after step {step}"
    return None


def next_rollback(what: str, on_nan: str, rollbacks: jax.Array) -> jax.Array:
    """Return the number of the roll-back that a problem leads to; raises UserError to stop."""
    stopped = "stopped"
    if on_nan == "roll_back":
        if int(rollbacks) < MAX_ROLLBACKS:
            return rollbacks + 1
        stopped = f"stopped after {MAX_ROLLBACKS} roll-backs"
    raise UserError(
        f"{what}: {stopped}; earlier checkpoints are kept. Try a lower optimizer.learning_rate in "
        "a new workdir, or check the data"
    )


@jax.jit  # where the parameters are, which may be on the devices of several processes
def all_finite(params: Params) -> jax.Array:
    """Return whether all parameters are finite; a state of which that is not so is never saved."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
