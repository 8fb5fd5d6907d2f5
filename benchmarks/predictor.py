"""A code that only predicts each number from those beside it: what a trained model is to beat.

    python benchmarks/predictor.py --config=experiments/relief.py
    python benchmarks/predictor.py --config=experiments/patches64.py

For integer data of a config. Along the last two axes in space a number is predicted by the median
edge detector of LOCO-I and JPEG-LS (Weinberger, Seroussi & Sapiro 2000), of series by the number
before it; every channel by itself. What is left costs −log2 of its share in a histogram of the
training split, with 0.05 added to each count; the first number of each line or slice costs log2 of
the levels. The bits per dimension of the test split are the mean ± standard error over examples.
"""

import argparse

import numpy as np

import short_runs
from vdm.run import data
from vdm.run.training import build

ADDED = 0.05  # to each count: what the training split does not show costs about 20 bits


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    _, flags = parser.parse_known_args()
    config = short_runs.read_config(flags, steps=1, seed=0)
    levels = build.model(config).likelihood.levels
    if levels is None:
        parser.error("the config is of real numbers: expected one with levels")
    splits = [data.load(config.data, split) for split in data.SPLITS]
    if len(splits[0].shape) < 2:
        parser.error(f"examples have shape {list(splits[0].shape)}: expected an axis of channels")
    train, test = (residuals(split.x) for split in splits)
    counts = np.bincount(train.ravel() + levels, minlength=2 * levels + 1) + ADDED
    bits = -np.log2(counts / counts.sum())
    size = test[0].size
    alone = firsts(test[0].shape)
    totals = bits[test + levels].reshape(len(test), -1).sum(1)
    totals += alone * (np.log2(levels) - bits[levels])  # their residuals are 0
    totals /= size
    error = totals.std(ddof=1) / np.sqrt(len(totals))
    print(f"{len(totals)} test examples: {totals.mean():.3f} ± {error:.3f} bits per dimension")


def residuals(x):
    """Return what prediction leaves of examples [n, *d, channels], 0 for numbers without any."""
    y = np.moveaxis(x.astype(np.int64), -1, 1)
    if y.ndim == 3:
        return np.diff(y, axis=-1, prepend=y[..., :1])
    left, above = np.roll(y, 1, -1), np.roll(y, 1, -2)
    corner = np.roll(left, 1, -2)
    low, high = np.minimum(left, above), np.maximum(left, above)
    found = np.where(corner >= high, low, np.where(corner <= low, high, left + above - corner))
    found[..., 0, :], found[..., :, 0] = left[..., 0, :], above[..., :, 0]
    found[..., 0, 0] = y[..., 0, 0]
    return y - found


def firsts(shape):
    """Return how many numbers of an example [channels, *d] have none to predict them by."""
    return int(np.prod(shape[: 1 if len(shape) == 2 else -2]))


if __name__ == "__main__":
    main()
