"""The data of the experiments on molecules and on a table: what their documents say of them."""

import functools

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from documents_of import module


@functools.cache
def molecules():
    pytest.importorskip("biotite")
    return module("molecules")


def split(x, lengths):
    return np.split(x, np.cumsum(lengths)[:-1])


def test_the_molecules_are_those_of_the_dictionary():
    made = molecules()
    from biotite.structure.info import residue

    counts = {}
    every = []
    for part in ("train", "test"):
        x, numbers = made.molecules(part)
        counts[part] = len(numbers)
        assert numbers.min() == made.FEWEST and numbers.max() == made.MOST
        assert np.isfinite(x).all() and len(x) == numbers.sum()
        every += split(x, numbers)
    assert f"{counts['train']:,} and {counts['test']:,} molecules" in made.__doc__
    # Alanine by biotite's own function, whose coordinates are the ideal ones: the same shape.
    ideal = residue("ALA")
    ideal = pdist(ideal.coord[ideal.element != "H"])
    near = [np.abs(pdist(one) - ideal).max() for one in every if len(one) == 6]
    assert min(near) < 0.3


def test_molecules_are_turned_and_moved_and_nothing_else():
    made = molecules()
    x, numbers = made.molecules("train")
    moved, beside = made.data("train")
    lengths = beside["lengths"]
    assert len(lengths) == made.POSITIONS["train"] * len(numbers) and moved.dtype == np.float32
    some = np.random.default_rng(0).choice(len(lengths), 200, replace=False)
    first, there = split(x, numbers), split(moved, lengths)
    centres = []
    for i in some:
        one, own = first[i % len(numbers)], there[i]
        np.testing.assert_allclose(pdist(own), pdist(one), atol=1e-4)
        centres.append(own.mean(axis=0))
        # The same hand: the volume that three of its edges span keeps its sign.
        if len(one) > 3:
            hands = [np.linalg.det(part[1:4] - part[0]) for part in (one, own)]
            np.testing.assert_allclose(*hands, atol=1e-3)
    assert abs(np.std(centres) / made.CENTRE - 1) < 4 / np.sqrt(2 * 600)
    # Directions are even: an edge's mean is 0, by its own length.
    edge = np.asarray([(own[1] - own[0]) / np.linalg.norm(own[1] - own[0]) for own in there])
    assert (np.abs(edge.mean(axis=0)) < 4 / np.sqrt(3 * len(numbers))).all()


def test_the_gaussian_beside_the_molecules_is_one():
    made = molecules()
    x, numbers = made.molecules("train")
    trained = split(x, numbers)
    found = made.gaussian_bits()
    x, beside = made.data("test")
    counts = np.bincount(numbers, minlength=17)[1:] + 0.5
    for i, one in enumerate(split(x, beside["lengths"])[:40]):
        n = len(one)
        own = [part - part.mean(axis=0) for part in trained if len(part) == n]
        variance = np.mean([np.sum(part**2) for part in own]) / (3 * (n - 1))
        covariance = variance * (np.eye(n) - 1 / n) + np.ones((n, n))
        nats = -multivariate_normal(np.zeros(n), covariance).logpdf(one.T.astype(float)).sum()
        nats -= np.log(counts[n - 1] / counts.sum()) + np.log(np.arange(1, n + 1)).sum()
        np.testing.assert_allclose(found[i], nats / (3 * n * np.log(2)), rtol=1e-5)


def test_the_mixture_beside_the_table_is_one_in_its_units(monkeypatch):
    made = module("cells")
    monkeypatch.setattr(made, "GRID", {"n_components": [2], "reg_covar": [1e-3]})
    bits = made.mixture_bits()
    fitted = made.mixture()
    scaler, best = fitted.named_steps["standardscaler"], fitted.named_steps["gaussianmixture"]
    parts = []
    for weight, mean, covariance in zip(best.weights_, best.means_, best.covariances_, strict=True):
        apart = made.data("test") - (scaler.mean_ + scaler.scale_ * mean)
        own = covariance * np.outer(scaler.scale_, scaler.scale_)
        square = np.sum(apart * np.linalg.solve(own, apart.T).T, axis=1)
        log_det = np.linalg.slogdet(2 * np.pi * own)[1]
        parts.append(np.log(weight) - 0.5 * (square + log_det))
    # The rows are scaled in float32. Without the scale of a single column it would be off by 0.01.
    np.testing.assert_allclose(bits, -logsumexp(parts, axis=0) / (30 * np.log(2)), atol=1e-4)
    train, test = made.data("train"), made.data("test")
    assert train.shape == (456, 30) and test.shape == (113, 30)
    assert len(np.unique(np.concatenate([train, test]), axis=0)) == 569
