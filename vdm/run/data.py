"""The data sets by name: real digits, two toys, one's own arrays and images, and many more."""

import functools
import importlib.resources
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vdm.choices import unknown
from vdm.run import arrays, images, tfds_images
from vdm.run.config import DataConfig
from vdm.run.dataset import Dataset, Examples
from vdm.run.errors import UserError
from vdm.run.files import read_json, write_json

SPLITS = ("train", "test")
DATA_FILE = "data.json"


@functools.lru_cache(maxsize=4)
def load(config: DataConfig, split: str) -> Dataset:
    """Return a split of a data set, without decoding what is stored in files.

    A name that is none of DATASETS or FILES is one of tensorflow-datasets. Raises UserError
    for an unknown name or split, and for files that are missing or bad.
    Read once: the caller must not write into the arrays.
    """
    known = (*DATASETS, *FILES, *EXAMPLES_OF_TFDS)
    if config.name in FILES and not config.path:
        raise UserError(f"the data set {config.name!r} needs data.path, a file or a folder")
    if config.path and config.name not in FILES:
        raise UserError(
            f"data.path is for the data sets {' and '.join(FILES)}: got name={config.name!r}"
        )
    if config.name not in (*DATASETS, *FILES):
        return tfds_images.load(config.name, split, known)
    if split not in SPLITS:
        raise UserError(unknown("split", split, SPLITS))
    if config.name in FILES:
        return FILES[config.name](config.path, split)
    return DATASETS[config.name](split)


def keep(dataset: Dataset, workdir: pathlib.Path) -> None:
    """Write into the workdir what a run is trained on; raises UserError if that has changed.

    Batches are drawn by the number of an example: with others among them, a resumed run
    would see other batches than an uninterrupted one.
    """
    path = workdir / DATA_FILE
    now = {"version": dataset.version, "num_examples": len(dataset), "shape": list(dataset.shape)}
    before = read_json(path) if path.exists() else now
    if before != now:
        raise UserError(
            f"{workdir} holds a run on other data: {_said(before)} there, {_said(now)} here. Use "
            "another --workdir, or the same data to resume"
        )
    write_json(path, now)


def kept_shape(workdir: pathlib.Path) -> tuple[int, ...]:
    """Return the shape of an example that a workdir's run was trained on; raises UserError."""
    return tuple(read_json(workdir / DATA_FILE)["shape"])


def _said(kept: dict[str, Any]) -> str:
    return f"{kept['num_examples']} examples {kept['shape']} of {kept['version']}"


def digits(split: str) -> Dataset:
    """Return the UCI handwritten digits that scikit-learn embeds: 8×8 pixels, 17 grey levels.

    1,500 images to train on and 297 to test on. The test images' positions in the
    original order are written down in digits_test.txt: 297 draws without replacement,
    the last of numpy.random.RandomState(0).permutation(1797), whose stream NumPy has frozen.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    text = importlib.resources.files("vdm.run").joinpath("digits_test.txt").read_text()
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
    points = 1.6 * points + 0.03 * rng.normal(size=(n, 2))
    return Dataset("swirl", split, Examples(points.astype(np.float32)), "swirl:1")


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
    return Dataset("mixture", split, examples, "mixture:1", num_classes=3)


DATASETS: Mapping[str, Callable[[str], Dataset]] = {
    "digits": digits,
    "swirl": swirl,
    "mixture": mixture,
}
FILES: Mapping[str, Callable[[str, str], Dataset]] = {"arrays": arrays.load, "images": images.load}
# A few of the many, to be named in messages.
EXAMPLES_OF_TFDS = ("cifar10", "mnist", "downsampled_imagenet")


def _toy_stream(split: str) -> tuple[np.random.RandomState, int]:
    seed, n = (1, 20_000) if split == "train" else (2, 4_000)
    return np.random.RandomState(seed), n
