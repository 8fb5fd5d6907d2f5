"""Several processes as one run: they connect before anything is computed, and one writes."""

import re
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from vdm.run.errors import UserError

T = TypeVar("T")


def start(
    coordinator: str | None = None, num_processes: int | None = None, index: int | None = None
) -> None:
    """Join this process to the others of a run; call it before anything uses a device.

    Without arguments JAX finds the others itself (SLURM, Open MPI, Kubernetes, TPU pods).
    Raises UserError where some of the arguments are missing or the others are not found.
    """
    given = [value is not None for value in (coordinator, num_processes, index)]
    if any(given) and not all(given):
        raise UserError("--coordinator, --num_processes and --process_index go together")
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator must be HOST:PORT: got {coordinator!r}")
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num_processes must be at least 1: got {num_processes}")
    if num_processes is not None and not 0 <= (index or 0) < num_processes:
        raise UserError(f"--process_index must be in 0 to {num_processes - 1}: got {index}")
    try:
        jax.distributed.initialize(coordinator, num_processes, index)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot join the other processes: {str(error).splitlines()[0]}; give their address "
            "with --coordinator=HOST:PORT, --num_processes and --process_index"
        ) from error


def is_first() -> bool:
    """Return whether this is the process that writes and prints for all."""
    return jax.process_index() == 0


def first_alone(work: Callable[[], T]) -> T | None:
    """Return the result of `work` in the first process, and None in the others, which wait for it.

    An error in it ends all of them.
    """
    return together(lambda: work() if is_first() else None)


def together(work: Callable[[], T]) -> T:
    """Return the result of `work` in this process, once it is done in all; an error ends all."""
    problem: Exception | None = None
    try:
        result = work()
    except Exception as error:
        problem = error
    went_well = all_agree(problem is None)
    if problem is not None:
        raise problem
    if not went_well:
        raise UserError("another process stopped this run; its output says why")
    return result


def whole(leaf: jax.Array | np.ndarray) -> np.ndarray:
    """Return an array as numbers of this process; all must call this where several share it."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def all_agree(fine: bool) -> bool:
    """Return whether `fine` holds in every process; all processes must call this."""
    if jax.process_count() == 1:
        return fine
    return bool(np.all(multihost_utils.process_allgather(np.asarray(fine))))
