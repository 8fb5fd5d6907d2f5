"""What the report reads from a run's checkpoint: its size, its schedule, law of λ and chains."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vdm.run.errors import UserError
from vdm.run.report import svg
from vdm.run.report.read import Run
from vdm.run.trained import Trained, load
from vdm.run.training import objective
from vdm.run.workdir import chains
from vdm.run.workdir.chains import Kept

MOST_CHAINS = svg.NUM_SERIES - 1  # beside the error that they are drawn below
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
    number_size: int  # of a network of the number of points
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
        number_size=_size(params.get("number_law", {})),
        times=times,
        log_snr=log_snr,
        log_snrs=log_snrs,
        density=density,
    )


def chains_of(run: Run, restored: Restored | str) -> tuple[Kept, ...] | str:
    """Return the chains of the run's averaged parameters, or in words why they cannot be read.

    They are those of the fewest steps, as many as a figure can tell apart.
    """
    if isinstance(restored, str):
        return ()
    params = restored.trained.params
    try:
        found = chains.steps(run.workdir, params)[:MOST_CHAINS]
        return tuple(chains.find(run.workdir, params, num_steps) for num_steps in found)
    except UserError as error:
        return str(error)


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
