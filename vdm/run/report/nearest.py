"""The nearest training example of each sample: whether a model repeats its training data.

Distances are Euclidean, over the values of an example as the data have them (for images their
levels). Held-out examples give the scale: a model that has learned the data draws samples about as
far from the training set as they are; one that repeats it draws samples much nearer.
"""

import time
from typing import NamedTuple

import numpy as np

from vdm.run.data.dataset import Dataset, chunks
from vdm.run.system.progress import bar

SECONDS = 5.0  # between two messages of the bar


class Nearest(NamedTuple):
    """For each query the position of its nearest example and the distance to it."""

    position: np.ndarray
    distance: np.ndarray


def nearest(queries: np.ndarray, dataset: Dataset) -> Nearest:
    """Return the nearest example of a data set to each query [n, *shape], by search of them all."""
    n = len(queries)
    flat = queries.reshape(n, -1).astype(np.float64)
    best = Nearest(np.zeros(n, int), np.full(n, np.inf))
    shown = 0.0
    with bar("nearest", len(dataset)) as advance:
        for index in chunks(dataset.examples):
            x = dataset.take(index).x.reshape(len(index), -1).astype(np.float64)
            squares = np.square(flat).sum(1)[:, None] - 2.0 * flat @ x.T + np.square(x).sum(1)
            closest = squares.argmin(1)
            # By the difference itself: the expanded square cancels where two are nearly equal.
            distance = np.sqrt(np.square(flat - x[closest]).sum(1))
            nearer = distance < best.distance
            best = Nearest(
                np.where(nearer, index[closest], best.position),
                np.where(nearer, distance, best.distance),
            )
            done = int(index[-1]) + 1
            if done == len(dataset) or time.monotonic() > shown + SECONDS:
                advance(done, "training examples searched")
                shown = time.monotonic()
    return best


def subset(dataset: Dataset, most: int) -> np.ndarray:
    """Return at most so many examples, evenly spaced, so that they are the same in every report."""
    n = min(most, len(dataset))
    return dataset.take(np.linspace(0, len(dataset) - 1, n).round().astype(int)).x
