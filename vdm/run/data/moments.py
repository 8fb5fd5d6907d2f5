"""Mean, variance and rounding of real numbers: whether they fit a process of unit scale."""

import math
from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Of each of the k entries of the last axis, over the examples and all other axes: arrays [k].

    `rounding` is the largest error that float32 makes of a number.
    """

    size: int
    mean: np.ndarray
    variance: np.ndarray
    rounding: np.ndarray

    @property
    def is_constant(self) -> np.ndarray:
        """Which of the entries are constant."""
        return self.variance == 0

    @property
    def of_all(self) -> tuple[float, float]:
        """Mean and variance of all numbers together."""
        return float(self.mean.mean()), float(self.variance.mean() + self.mean.var())


def of(x: np.ndarray) -> Moments:
    """Return the moments of finite real numbers [n, ..., k], n at least 1, in float64."""
    rows = x.reshape(-1, x.shape[-1])
    exact = rows.astype(np.float64)
    rounding = np.abs(exact - rows.astype(np.float32)).max(axis=0)
    apart = exact - exact[0]  # so that a constant has no variance at all
    return Moments(len(rows), exact[0] + apart.mean(axis=0), apart.var(axis=0), rounding)


def join(one: Moments, other: Moments) -> Moments:
    """Return the moments of two parts together (Chan, Golub and LeVeque 1983, eq. 2.1)."""
    size = one.size + other.size
    share, apart = other.size / size, other.mean - one.mean
    variance = (1 - share) * one.variance + share * other.variance
    variance = variance + share * (1 - share) * apart**2
    rounding = np.maximum(one.rounding, other.rounding)
    return Moments(size, one.mean + share * apart, variance, rounding)


def spread(variance: float) -> float:
    """Return the standard deviation; 1 of a constant."""
    return math.sqrt(variance) if variance > 0 else 1.0
