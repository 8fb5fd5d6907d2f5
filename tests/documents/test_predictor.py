"""The predicting code of the benchmarks: what it costs is what a decoder needs."""

import importlib

import numpy as np
import pytest

import documented


@pytest.fixture
def predictor(monkeypatch):
    monkeypatch.syspath_prepend(documented.ROOT / "benchmarks")
    return importlib.import_module("predictor")


@pytest.mark.parametrize("shape", [(9, 2), (4, 5, 3), (2, 4, 3, 1)])
def test_a_number_is_predicted_from_those_before_it_alone(shape, predictor):
    x = np.random.default_rng(0).integers(0, 50, (1, *shape))
    order = np.moveaxis(np.arange(x.size).reshape(x.shape), -1, 1)
    before = predictor.residuals(x)
    for where in np.ndindex(shape):
        changed = x.copy()
        changed[0][where] += 7
        moved = predictor.residuals(changed) != before
        # In the order of the data no number before it, and itself but where it is a first one.
        channel, *place = (where[-1], *where[:-1])
        own = order[(0, channel, *place)]
        assert np.all(order[moved] >= own)
        first = not any(place[-2:])
        assert moved[(0, channel, *place)] != first
    zeros = np.prod(shape[-1:] if len(shape) == 2 else (shape[-1], *shape[:-3]))
    assert predictor.firsts(before[0].shape) == zeros


def test_edges_and_slopes_leave_nothing(predictor):
    rows, columns = np.indices((6, 7))
    edges = np.where(columns < 3, 4, 40), np.where(rows < 2, 40, 4)
    for seen in (*edges, 10 + rows - columns):
        left = predictor.residuals(seen[None, ..., None])
        assert not left[..., 1:, 1:].any()
    line = predictor.residuals((3 * np.arange(8))[None, :, None])
    assert line.ravel().tolist() == [0, *[3] * 7]
