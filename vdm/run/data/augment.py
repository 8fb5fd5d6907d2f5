"""Augmenting images by flips, quarter turns and swaps of colour channels, all of them lossless.

They form a group: 8 symmetries of a square (4 of a rectangle) times, for colour images, 6 orders of
the channels. A flag conditions the network on it, so that the bound on unchanged images (flag 0) is
still a bound on their own distribution and not on the augmented one.
"""

import itertools
from typing import NamedTuple

import numpy as np

from vdm.run.config.words import AUGMENTATIONS
from vdm.run.errors import UserError


class Element(NamedTuple):
    """One augmentation: first a left-right flip, then quarter turns, then channels reordered."""

    flip: bool
    turns: int
    channels: tuple[int, ...]


def group(shape: tuple[int, ...]) -> tuple[Element, ...]:
    """Return all augmentations of images [h, w, c], the identity first.

    Raises UserError for data that are not images.
    """
    if len(shape) != 3:
        raise UserError(f"data.augment is for images [h, w, c]: got examples {list(shape)}")
    return tuple(itertools.starmap(Element, itertools.product(*_factors(shape))))


def apply(x: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Return images [b, h, w, c], each augmented by its element of the group."""
    elements, out = group(x.shape[1:]), np.empty_like(x)
    for i in np.unique(which):
        rows, element = which == i, elements[i]
        images = x[rows]
        images = images[:, :, ::-1] if element.flip else images
        out[rows] = np.rot90(images, element.turns, axes=(1, 2))[..., element.channels]
    return out


def draw(name: str, shape: tuple[int, ...], seed: int, step: int, size: int) -> np.ndarray:
    """Return an element of the group for each position of a step's batch.

    "group" draws all with equal probability. "vdm" is the VDM authors' law: each of flip, turn and
    swap happens with probability ½; a turn is by one to three quarters (by two for a rectangle), a
    swap any order of the channels.
    """
    factors = [len(choices) for choices in _factors(shape)]
    # A stream other than that of the epochs, and the same for any number of processes.
    u, v = np.random.RandomState([seed, step, 1]).random_sample((2, 3, size))
    if name == "group":
        chosen = [np.floor(v[i] * n).astype(int) for i, n in enumerate(factors)]
    else:
        flips, turns, swaps = factors
        chosen = [
            (u[0] < 0.5) * (flips - 1),
            (u[1] < 0.5) * (1 + np.floor(v[1] * (turns - 1)).astype(int)),
            (u[2] < 0.5) * np.floor(v[2] * swaps).astype(int),
        ]
    return np.ravel_multi_index(chosen, factors)


def flags(name: str, which: np.ndarray) -> np.ndarray:
    """Return the flag that conditions the network: for "group" the element, for "vdm" 0 or 1."""
    return AUGMENTATIONS[name](which)


def num_flags(name: str, shape: tuple[int, ...]) -> int:
    """Return how many flags there are for images of a shape."""
    return 1 + int(flags(name, np.arange(len(group(shape)))).max())


def _factors(shape: tuple[int, ...]) -> tuple[tuple, tuple, tuple]:
    height, width, channels = shape
    turns = (0, 1, 2, 3) if height == width else (0, 2)
    same = tuple(range(channels))
    # Other channels than red, green and blue would not be images of this kind when reordered.
    orders = tuple(itertools.permutations(same)) if channels == 3 else (same,)
    return (False, True), turns, orders
