"""From nats of examples to bits per dimension, each example by its own number of dimensions."""

import numpy as np

from vdm.losses import bits_per_dim
from vdm.run.data.dataset import Dataset


def in_bits(nats: np.ndarray, dims: int | np.ndarray) -> np.ndarray:
    """Return the nats of all examples, [n, ...], as bits per dimension.

    `dims` is the number of dimensions of every example, or that of each, [n] (`Dataset.dims`).
    """
    if isinstance(dims, np.ndarray):
        dims = dims.reshape(-1, *(1,) * (nats.ndim - 1))
    return np.asarray(bits_per_dim(nats, dims))


def so_far(nats: np.ndarray, dataset: Dataset, per_example: int = 1) -> str:
    """Return the mean of the rows done so far, [r], in bits per dimension as a text.

    Rows are in the order of the examples, `per_example` of each.
    """
    dims = np.repeat(dataset.dims, per_example)[: len(nats)]
    return f"{float(np.mean(bits_per_dim(nats, dims))):.3f} bpd"
