"""Data sets: the splits are what they say, and every epoch shows every example once."""

import os
import pathlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vdm.run import data
from vdm.run.batches import batch_indices
from vdm.run.config import DataConfig
from vdm.run.errors import UserError


def load(name, split):
    return data.load(DataConfig(name), split)


PREPARED = pathlib.Path(__file__).parents[2] / "shared/data/tfds"


def test_digits_are_split_as_written_down():
    order = np.random.RandomState(0).permutation(1797)
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test), train.levels, train.num_dims) == (1500, 297, 17, 64)
    bunch = load_digits()
    for split, where in ((train, np.sort(order[:1500])), (test, np.sort(order[1500:]))):
        np.testing.assert_array_equal(split.x[..., 0], bunch.images[where])
        np.testing.assert_array_equal(split.labels, bunch.target[where])
    assert train.x.dtype == np.uint8 and train.x.max() == 16


def test_the_mixture_has_the_moments_of_its_definition():
    weights = np.array([0.6, 0.3, 0.1])
    means = np.array([[-1.0, -0.5], [1.0, 0.2], [1.5, 1.8]])
    widths = np.array([0.5, 0.25, 0.15])
    x = load("mixture", "train").x.astype(np.float64)
    mean = weights @ means
    variance = weights @ (means**2 + widths[:, None] ** 2) - mean**2
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(variance / len(x)))
    squares = (x - mean) ** 2
    assert np.all(np.abs(squares.mean(0) - variance) < 5 * squares.std(0) / np.sqrt(len(x)))


def test_the_swirl_is_a_spiral():
    x = load("swirl", "test").x.astype(np.float64)
    radius = np.linalg.norm(x, axis=-1) / 1.6
    away = np.abs(
        x
        - 1.6
        * radius[:, None]
        * np.stack([np.cos(3 * np.pi * radius), np.sin(3 * np.pi * radius)], -1)
    ).max()
    # The noise moves a point by up to about 4 of its standard deviations, and a change of
    # radius turns the nearest point of the spiral by up to 3π of it.
    assert 0.03 < away < 4.5 * 0.03 * (1 + 3 * np.pi)
    assert 0.5 < x.std() < 1.2


def test_train_and_test_toys_are_different_draws():
    for name in ("swirl", "mixture"):
        train, test = load(name, "train"), load(name, "test")
        assert not set(map(tuple, train.x)) & set(map(tuple, test.x))


def test_every_epoch_shows_every_example_once():
    seen = np.concatenate([batch_indices(3, step, 7, 10) for step in range(20)])
    for epoch in seen.reshape(14, 10):
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in seen.reshape(14, 10)}) == 14
    assert not np.array_equal(batch_indices(3, 0, 7, 10), batch_indices(4, 0, 7, 10))


def test_unknown_names_are_named():
    with pytest.raises(UserError, match=r"unknown data set 'digit'.*'digits'\?"):
        load("digit", "train")
    with pytest.raises(UserError, match=r"unknown split 'tests'.*'test'\?"):
        load("digits", "tests")


@pytest.mark.skipif(not PREPARED.exists(), reason="no prepared tensorflow-datasets at hand")
def test_an_image_set_is_read_whole(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(PREPARED))
    mnist = load("mnist", "test")
    # The counts and the mean of the original files.
    assert mnist.x.shape == (10_000, 28, 28, 1) and mnist.x.dtype == np.uint8
    assert mnist.x.mean() == pytest.approx(33.791, abs=5e-4)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    np.testing.assert_array_equal(np.bincount(mnist.labels), counts)


def test_a_set_that_is_not_prepared_says_what_to_run(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(tmp_path))
    data.load.cache_clear()
    with pytest.raises(UserError, match=r"prepare the set once.*tfds.builder\('mnist'"):
        load("mnist", "test")
