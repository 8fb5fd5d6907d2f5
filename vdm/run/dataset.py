"""A data set in memory, and the batches that a training run draws from it.

A batch is a pure function of the seed and the step, so a resumed run sees exactly the
batches that an uninterrupted one would have seen.
"""

import dataclasses
import functools
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a data set, whole: x has the batch axis first, labels are classes or None."""

    name: str
    split: str
    x: np.ndarray
    labels: np.ndarray | None = None
    num_classes: int | None = None
    levels: int | None = None  # of integer data

    @property
    def num_dims(self) -> int:
        """The number of dimensions of one example."""
        return math.prod(self.x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)


def batch_indices(seed: int, step: int, batch_size: int, num_examples: int) -> np.ndarray:
    """Return which examples make up the batch of a step: every epoch a new permutation.

    Epochs follow each other without a gap: a batch may end one and begin the next, and
    every example is seen once an epoch.
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
