"""Batches: every example once an epoch, and the same from anywhere."""

import dataclasses
import sys

import numpy as np
import pytest

import runs
from vdm.run import data
from vdm.run.data import condition
from vdm.run.data.dataset import Examples, Stored, settle
from vdm.run.errors import UserError
from vdm.run.training.batches import batch_indices, batches, make_batch


def test_every_epoch_shows_every_example_once():
    seen = np.concatenate([batch_indices(3, step, 7, 10) for step in range(20)])
    for epoch in seen.reshape(14, 10):
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in seen.reshape(14, 10)}) == 14
    assert not np.array_equal(batch_indices(3, 0, 7, 10), batch_indices(4, 0, 7, 10))


def augmented(**values):
    """Digits told by their class and by one of 8 augmentations."""
    config = runs.images(num_steps=40, batch_size=48)
    changed = dataclasses.replace(config.data, augment="group", **values)
    return dataclasses.replace(config, data=changed)


def stored(dataset):
    """The same examples, but read one by one whenever they are asked for."""
    examples = dataset.examples

    def take(index):
        parts = [examples.take(np.array([i])) for i in index]
        x, labels = (np.concatenate([getattr(p, f) for p in parts]) for f in ("x", "labels"))
        return dataclasses.replace(parts[0], x=x, labels=labels)

    on_disk = Stored(len(dataset), dataset.shape, dataset.examples.dtype, take)
    return dataclasses.replace(dataset, examples=on_disk)


TOLD = condition.Condition(10, 8)


def assert_equal(batch, other):
    np.testing.assert_array_equal(batch.x, other.x)
    np.testing.assert_array_equal(batch.cond, other.cond)
    assert (batch.x.dtype, batch.cond.dtype) == (other.x.dtype, other.cond.dtype)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_processes_sees_the_same_batch_together(count):
    config, dataset = augmented(), data.load(runs.images().data, "train")
    for step in (0, 31):  # the second one crosses into another epoch
        whole = make_batch(dataset, TOLD, config, step)
        rows = np.arange(48).reshape(count, -1)
        parts = [make_batch(dataset, TOLD, config, step, part) for part in rows]
        assert [len(part.x) for part in parts] == [48 // count] * count
        np.testing.assert_array_equal(np.concatenate([part.x for part in parts]), whole.x)
        np.testing.assert_array_equal(np.concatenate([part.cond for part in parts]), whole.cond)


@pytest.mark.parametrize("first", [0, 33])
def test_streamed_batches_are_those_in_memory_from_any_step(first):
    dataset = data.load(runs.images().data, "train")
    kept = batches(dataset, TOLD, augmented(in_memory="yes"), first)
    streamed = batches(stored(dataset), TOLD, augmented(in_memory="no"), first)
    pairs = list(zip(kept, streamed, strict=True))
    assert len(pairs) == 40 - first
    for batch, other in pairs:
        assert_equal(batch, other)
    assert_equal(pairs[0][0], make_batch(dataset, TOLD, augmented(), first))


def test_what_is_small_is_decoded_once():
    dataset = stored(data.load(runs.images().data, "train"))
    for where in ("auto", "yes"):
        settled = settle(dataset, where)
        assert isinstance(settled.examples, Examples) and settled.version == dataset.version
        np.testing.assert_array_equal(settled.x, dataset.x)
    assert settle(dataset, "no") is dataset
    examples = dataclasses.replace(dataset.examples, size=2**33 // 64)
    large = dataclasses.replace(dataset, examples=examples)
    assert settle(large, "auto") is large


def test_an_example_that_cannot_be_read_stops_both_kinds_with_its_own_message():
    dataset = data.load(runs.images().data, "train")

    def take(index):
        if 7 in index:
            raise UserError("number 7 is damaged")
        return dataset.take(index)

    bad = dataclasses.replace(stored(dataset).examples, take=take)
    for where in ("yes", "no"):
        with pytest.raises(UserError, match="number 7 is damaged"):
            config = augmented(in_memory=where)
            list(batches(dataclasses.replace(dataset, examples=bad), TOLD, config, 0))


def test_streaming_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    dataset = stored(data.load(runs.images().data, "train"))
    with pytest.raises(UserError, match=r"pip install 'vdm-jax\[stream\]'"):
        batches(dataset, TOLD, augmented(in_memory="no"), 0)


def test_a_subset_of_stored_examples_is_theirs():
    dataset = data.load(runs.images().data, "train")
    index = np.array([7, 1, 400])
    for part in (dataset.subset(index), stored(dataset).subset(index)):
        assert len(part) == 3
        np.testing.assert_array_equal(part.take(np.array([2, 0])).x, dataset.x[[400, 7]])
        np.testing.assert_array_equal(part.labels, dataset.labels[index])
