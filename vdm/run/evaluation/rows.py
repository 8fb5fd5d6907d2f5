"""A function of examples, taken over a whole data set a few rows at a time.

Every example has the same number of rows, each given the example's position and its own number.
What a row computes from these alone depends on neither the batch size nor the devices.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from vdm.condition import take
from vdm.run import mesh as meshes
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError
from vdm.run.system.ahead import one_ahead
from vdm.run.system.progress import bar

SECONDS = 5.0  # between two messages of the bar
# (state, example [r], row [r], x [r, *d], cond) → arrays [r], compiled for a mesh.
RowFn = Callable[..., tuple[jax.Array, ...]]


def compiled(fn: RowFn, mesh: Mesh, precision: str) -> jax.stages.Wrapped:
    """Return the function compiled, its results whole on every device.

    `precision` says how float32 is multiplied, one of `vdm.run.config.words.PRECISIONS`.
    """

    def traced(*given: Any) -> tuple[jax.Array, ...]:
        with meshes.under(mesh), jax.default_matmul_precision(precision):
            return fn(*given)

    return jax.jit(traced, out_shardings=meshes.whole(mesh))


def of_examples(
    fn: RowFn,
    state: PyTree,
    mesh: Mesh,
    dataset: Dataset,
    condition: Condition,
    *,
    per_example: int,
    batch_size: int,
    what: str | None,
    show: Callable[[np.ndarray], str],
    problem: str,
    fill: bool = False,
) -> np.ndarray:
    """Return fn's results for all rows of all examples, float64 [n, per_example, results].

    `fn` comes from `compiled`; `state` is any tree of arrays that it is given. A bar shows `what`
    is measured, and the text that `show` makes of the rows done so far, [rows, results]; None shows
    nothing. With `fill` a batch is as large where there are fewer rows, so that data of all sizes
    share a program. Raises UserError with the `problem` as soon as a result is not finite.
    """
    num_rows = len(dataset) * per_example
    size = meshes.padded(mesh, batch_size if fill else min(batch_size, num_rows))
    here = meshes.rows_here(mesh, size)

    def dispatched() -> Iterator[tuple[int, tuple[jax.Array, ...]]]:
        """Yield the first row of every batch, and its results as they are asked for."""
        for start in range(0, num_rows, size):
            # The last batch is filled up with its own last row; the copies are dropped.
            row = np.minimum(start + here, num_rows - 1)
            example = row // per_example
            # Every example is read once, however many of its rows are in the batch.
            distinct, where = np.unique(example, return_inverse=True)
            part = dataset.take(distinct)
            cond = take(condition.of_examples(part), where)
            batch = (example, row % per_example, part.x[where], cond)
            yield start, fn(state, *meshes.put(mesh, size, here, batch))

    done: list[np.ndarray] = []
    shown = 0.0
    with bar(what, num_rows) if what else nullcontext(_nothing) as advance:
        # The host reads and puts the next batch while the devices compute this one.
        for start, results in one_ahead(dispatched()):
            end = min(start + size, num_rows)
            found = np.stack(jax.device_get(results), axis=-1).astype(np.float64)
            done.append(found[: end - start])
            lost = np.flatnonzero(~np.isfinite(done[-1]).all(axis=1))
            if lost.size:
                first = (start + lost[0]) // per_example
                raise UserError(
                    f"{problem}: {lost.size} of {end - start} rows, the first one of example "
                    f"{first}"
                )
            if end == num_rows or time.monotonic() > shown + SECONDS:
                advance(end, show(np.concatenate(done)))
                shown = time.monotonic()
    return np.concatenate(done).reshape(len(dataset), per_example, -1)


def _nothing(done: int, text: str) -> None:
    """Show nothing."""
