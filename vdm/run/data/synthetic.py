"""Data sets that need no download: real digits that scikit-learn embeds, and two toys."""

import importlib.resources

import numpy as np

from vdm.run.data import moments
from vdm.run.data.dataset import Dataset, Examples


def digits(split: str) -> Dataset:
    """Return the UCI handwritten digits that scikit-learn embeds: 8×8 pixels, 17 grey levels.

    1,500 images to train on and 297 to test on. The test images' positions in the
    original order are written down in digits_test.txt: 297 draws without replacement,
    the last of numpy.random.RandomState(0).permutation(1797), whose stream NumPy has frozen.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    text = importlib.resources.files("vdm.run.data").joinpath("digits_test.txt").read_text()
    test = np.array([int(word) for word in text.split()])
    chosen = np.isin(np.arange(len(bunch.images)), test)
    chosen = chosen if split == "test" else ~chosen
    x = bunch.images[chosen].astype(np.uint8)[..., None]
    examples = Examples(x, bunch.target[chosen].astype(np.int32))
    return Dataset("digits", split, examples, "digits:1", num_classes=10, levels=17)


def swirl(split: str) -> Dataset:
    """Return points on a noisy two-dimensional spiral of a little more than one turn.

    20,000 to train on, 4,000 to test on; float32, of about unit variance.
    """
    rng, n = _toy_stream(split)
    radius = np.sqrt(rng.uniform(0.04, 1.0, n))  # even along the spiral's length
    angle = 3.0 * np.pi * radius
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    points = (1.6 * points + 0.03 * rng.normal(size=(n, 2))).astype(np.float32)
    return Dataset("swirl", split, Examples(points), "swirl:1", moments=moments.of(points))


def mixture(split: str) -> Dataset:
    """Return draws from a skewed mixture of three two-dimensional Gaussians, with the component.

    Weights 0.6, 0.3, 0.1; means (−1, −0.5), (1, 0.2), (1.5, 1.8); standard deviations
    0.5, 0.25, 0.15. 20,000 to train on, 4,000 to test on; float32.
    """
    rng, n = _toy_stream(split)
    means = np.array([[-1.0, -0.5], [1.0, 0.2], [1.5, 1.8]])
    component = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    points = means[component] + np.array([0.5, 0.25, 0.15])[component, None] * rng.normal(
        size=(n, 2)
    )
    examples = Examples(points.astype(np.float32), component.astype(np.int32))
    found = moments.of(examples.x)
    return Dataset("mixture", split, examples, "mixture:1", num_classes=3, moments=found)


def _toy_stream(split: str) -> tuple[np.random.RandomState, int]:
    seed, n = (1, 20_000) if split == "train" else (2, 4_000)
    return np.random.RandomState(seed), n
