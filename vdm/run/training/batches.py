"""The batches of a training run: a pure function of the seed and the step.

A resumed run therefore sees exactly the batches that an uninterrupted one would have seen,
from memory or from disk, and any number of processes sees the same ones together.
"""

import functools
from collections.abc import Iterator

import chex
import numpy as np
from jax.sharding import Mesh

from vdm.run import mesh as meshes
from vdm.run.config import Config
from vdm.run.data import augment
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import READERS, Dataset, Examples
from vdm.run.errors import UserError
from vdm.run.training.step import Batch

READ_AHEAD = 16  # batches


def batch_indices(seed: int, step: int, batch_size: int, num_examples: int) -> np.ndarray:
    """Return which examples make up the batch of a step: every epoch a new permutation.

    Epochs follow each other without a gap: a batch may end one and begin the next, and
    every example is seen once per epoch.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // num_examples
    indices = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _epoch_order(seed, int(epoch), num_examples)[positions[here] % num_examples]
    return indices


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    # RandomState: the one stream that NumPy promises never to change.
    return np.random.RandomState([seed, epoch]).permutation(num_examples)


def make_batch(
    dataset: Dataset,
    condition: Condition,
    config: Config,
    step: int,
    rows: np.ndarray | slice = slice(None),
) -> Batch:
    """Return the batch of a step, on the host, or only some of its rows.

    An example of a batch does not depend on which rows are asked for.
    """
    size = config.train.batch_size
    examples = dataset.take(batch_indices(config.seed, step, size, len(dataset))[rows])
    x, flags = examples.x, None
    if config.data.augment != "none":
        which = augment.draw(config.data.augment, dataset.shape, config.seed, step, size)[rows]
        x, flags = augment.apply(x, which), augment.flags(config.data.augment, which)
    chex.assert_shape(x, (len(np.arange(size)[rows]), *dataset.shape))
    chex.assert_type(x, dataset.examples.dtype)
    return Batch(x, condition.of_examples(examples, flags))


def batches(
    dataset: Dataset,
    condition: Condition,
    config: Config,
    first: int,
    rows: np.ndarray | slice = slice(None),
) -> Iterator[Batch]:
    """Yield the batches of the steps from `first` to the last.

    A set that is not in memory is read ahead while the steps are taken.
    """
    make = functools.partial(make_batch, dataset, condition, config, rows=rows)
    steps = range(first, config.train.num_steps)
    if isinstance(dataset.examples, Examples):
        return map(make, steps)
    try:
        import grain  # takes seconds, and is needed only for stored examples
    except ImportError as error:
        raise UserError(
            f"{dataset.version} is read from disk while training (data.in_memory is "
            f"{config.data.in_memory!r}), which needs the extra: pip install 'vdm-jax[stream]'"
        ) from error
    # The element of a step is its batch: the state of the iterator is the number of the step.
    options = grain.ReadOptions(num_threads=READERS, prefetch_buffer_size=READ_AHEAD)
    return iter(grain.MapDataset.source(steps).map(make).to_iter_dataset(options))


def on_devices(
    dataset: Dataset, condition: Condition, config: Config, mesh: Mesh, first: int
) -> Iterator[Batch]:
    """Return the batches from a step on, of which this process reads only its own rows."""
    size = config.train.batch_size
    rows = meshes.rows_here(mesh, size)
    here = batches(dataset, condition, config, first, rows)
    return (meshes.put(mesh, size, rows, batch) for batch in here)
