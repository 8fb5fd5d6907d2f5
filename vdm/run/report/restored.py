"""What the report reads from a run's checkpoint: its size, its schedule and its law of λ."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vdm.run.errors import UserError
from vdm.run.report.read import Run
from vdm.run.trained import Trained, load
from vdm.run.training import objective

NUM_TIMES = 201
NUM_POSITIONS = 2**14  # enough for the rarest of 100 bins to be met at all


class Restored(NamedTuple):
    """A run read back from its checkpoint, with the averaged parameters.

    `times` and `log_snr` trace the schedule; `log_snrs`, sorted, and `density` are the law that
    training draws λ from, p(λ).
    """

    trained: Trained
    network_size: int
    schedule_size: int
    times: np.ndarray
    log_snr: np.ndarray
    log_snrs: np.ndarray
    density: np.ndarray


def restore(run: Run) -> Restored | str:
    """Return the run at its latest checkpoint, or in words why it cannot be read."""
    try:
        trained = load(run.workdir)
    except UserError as error:
        return str(error)
    params = trained.params
    times = np.linspace(0.0, 1.0, NUM_TIMES)
    log_snr = np.asarray(trained.model.log_snr(params)(jnp.asarray(times, float)), np.float64)
    log_snrs, density = law(trained)
    return Restored(
        trained=trained,
        network_size=_size(params["network"]),
        schedule_size=_size(params["schedule"]),
        times=times,
        log_snr=log_snr,
        log_snrs=log_snrs,
        density=density,
    )


def law(trained: Trained) -> tuple[np.ndarray, np.ndarray]:
    """Return noise levels at even positions under the law of training, sorted, and p(λ) there."""
    aim = objective.build(trained.config.objective, trained.model)
    u = (jnp.arange(NUM_POSITIONS) + 0.5) / NUM_POSITIONS
    drawn = jax.jit(lambda params, state: aim.levels(state, trained.model.log_snr(params), u))(
        trained.params, trained.law_state
    )
    log_snrs, inverse = (np.asarray(part, np.float64) for part in drawn)
    order = np.argsort(log_snrs)
    return log_snrs[order], 1.0 / inverse[order]


def _size(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
