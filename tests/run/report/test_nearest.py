"""Nearest training examples by another route, planted copies among them."""

import numpy as np
import pytest

from vdm.run.data import dataset as datasets
from vdm.run.data.dataset import Dataset, Examples
from vdm.run.report import samples
from vdm.run.report.nearest import Nearest, nearest, subset


def images(rng, n):
    return rng.integers(0, 17, (n, 5, 4, 1), dtype=np.uint8)


@pytest.fixture
def case(monkeypatch):
    # Of 20 bytes each, so that the 60 examples come in nine chunks.
    monkeypatch.setattr(datasets, "CHUNK_BYTES", 7 * 20)
    rng = np.random.default_rng(3)
    training, queries = images(rng, 60), images(rng, 11)
    training[41], training[59] = queries[4], queries[9]
    training[17, 2, 2, 0] = 0
    queries[7] = training[17]
    queries[7, 2, 2, 0] = 3
    return queries, Dataset("case", "train", Examples(training), "case:1")


def test_the_nearest_is_that_of_all_pairs(case):
    queries, training = case
    found = nearest(queries, training)
    for i, query in enumerate(queries):
        pairs = [np.linalg.norm((x.astype(float) - query).ravel()) for x in training.x]
        assert found.distance[i] == pytest.approx(min(pairs), rel=1e-12)
        assert pairs[found.position[i]] == pytest.approx(min(pairs), rel=1e-12)


def test_copies_are_found_where_they_were_planted(case):
    found = nearest(*case)
    assert (found.position[4], found.distance[4]) == (41, 0.0)
    assert (found.position[9], found.distance[9]) == (59, 0.0)
    assert (found.position[7], found.distance[7]) == (17, 3.0)
    others = np.delete(found.distance, [4, 7, 9])
    assert others.min() > 3.0


def test_a_tiny_distance_between_large_numbers_is_not_lost():
    training = Dataset("case", "train", Examples(np.array([[1e6, 1e6], [3.0, 4.0]])), "case:1")
    found = nearest(np.array([[1e6, 1e6 + 1e-3]]), training)
    assert found.position[0] == 0 and found.distance[0] == pytest.approx(1e-3, rel=1e-6)


def test_samples_nearer_than_all_held_out_ones_are_counted(case):
    drawn = samples.Neighbours(
        training=case[1],
        of_samples=Nearest(np.zeros(4, int), np.array([0.0, 2.0, 5.0, 1.9])),
        of_held_out=Nearest(np.zeros(3, int), np.array([2.0, 7.0, 3.0])),
    )
    assert samples.nearer_than_all(drawn) == 2


def test_the_yardstick_is_spread_over_the_split(case):
    x = case[1].x
    np.testing.assert_array_equal(subset(case[1], 4), x[[0, 20, 39, 59]])
    np.testing.assert_array_equal(subset(case[1], 1000), x)
