"""The rows of a data set, a batch at a time: the host is one batch ahead of the devices."""

import dataclasses

import jax
import numpy as np
import pytest

import runs
from vdm.run import mesh as meshes, sample, trained
from vdm.run.config import DevicesConfig
from vdm.run.data import arrays
from vdm.run.data.condition import Condition
from vdm.run.errors import UserError
from vdm.run.evaluation import rows
from vdm.run.system.ahead import one_ahead

pytestmark = pytest.mark.float32

# Of four batches: each is dispatched before the one in front of it is fetched, and no earlier.
ORDER = ["put 0", "put 1", "get 0", "put 2", "get 1", "put 3", "get 2", "get 3"]


class Devices:
    """What stands for the devices: notes when a batch is asked for, and when it is fetched."""

    def __init__(self):
        self.seen = []
        self.count = 0

    def compute(self, values):
        self.seen.append(f"put {self.count}")
        self.count += 1
        return Result(self, self.count - 1, values)


class Result:
    """A result on the devices."""

    def __init__(self, devices, number, values):
        self.devices, self.number, self.values = devices, number, values

    def __array__(self, *given, **more):
        self.devices.seen.append(f"get {self.number}")
        return self.values


@pytest.fixture
def devices():
    return Devices()


def of_examples(devices, x):
    """The logarithm of the first number, two rows each, by a function that is not compiled."""

    def fn(state, example, row, x, cond):
        return (devices.compute(np.log(np.asarray(x)[:, 0]) + state * np.asarray(row)),)

    mesh = meshes.make(DevicesConfig(), jax.devices()[:1])
    return rows.of_examples(
        fn,
        100.0,
        mesh,
        arrays.given(x, None, "x"),
        Condition(),
        per_example=2,
        batch_size=4,
        what="rows",
        show=lambda done: f"{len(done)} seen {len(devices.seen)}",
        problem="lost",
    )


def test_a_batch_is_dispatched_before_the_one_in_front_is_fetched(devices, capsys):
    x = np.arange(1.0, 15.0, dtype=np.float32).reshape(7, 2)
    found = of_examples(devices, x)
    assert devices.seen == ORDER
    # In order, and the last batch without what it was filled up with.
    np.testing.assert_array_equal(found[..., 0], np.log(x[:, :1]) + np.array([[0.0, 100.0]]))
    # The bar counts what was fetched, not what was asked for: at its first text two are under way.
    first, *_, last = capsys.readouterr().err.splitlines()
    assert (first, last) == ("rows 4/14 4 seen 3", "rows 14/14 14 seen 8")


def test_a_row_that_is_not_finite_ends_it_with_its_own_example(devices):
    x = np.ones((7, 2), np.float32)
    x[3, 0] = 0.0
    with (
        np.errstate(divide="ignore"),
        pytest.raises(UserError, match=r"^lost: 2 of 4 rows, the first one of example 3$"),
    ):
        of_examples(devices, x)
    assert devices.seen == ORDER[:5]


def test_samples_are_drawn_while_those_before_are_used(devices, tmp_path, monkeypatch):
    run = trained.load(runs.copy_of("points", tmp_path / "run"))
    monkeypatch.setattr(
        sample,
        "_draw",
        lambda *given, shape, **more: devices.compute(np.full(shape, devices.count)),
    )
    settings = dataclasses.replace(run.config.sample, batch_size=2)
    for i, x in enumerate(sample.chunks(run, 8, settings)):
        devices.seen.append(f"use {i}")
        np.testing.assert_array_equal(x, np.full((2, 2), i))
    assert [seen for seen in devices.seen if "use" not in seen] == ORDER
    assert devices.seen[:5] == ["put 0", "put 1", "get 0", "use 0", "put 2"]


@pytest.mark.parametrize("n", range(4))
def test_one_ahead_yields_every_piece_once(n):
    assert list(one_ahead(range(n))) == list(range(n))
