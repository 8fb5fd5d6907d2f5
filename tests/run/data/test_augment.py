"""Augmentation: a group that acts, drawn by the laws that are stated, and told truly."""

import dataclasses

import numpy as np
import pytest

import runs
from vdm.run import data, evaluate, sample, train, trained
from vdm.run.data import augment
from vdm.run.data.condition import Condition
from vdm.run.errors import UserError
from vdm.run.training import parts

SQUARE = np.arange(4 * 4 * 3).reshape(4, 4, 3)  # no two values alike


def images_of(x):
    """Every augmentation of one image."""
    n = len(augment.group(x.shape))
    return augment.apply(np.broadcast_to(x, (n, *x.shape)), np.arange(n))


@pytest.mark.parametrize(
    ("shape", "size"), [((4, 4, 3), 48), ((4, 4, 1), 8), ((4, 4, 2), 8), ((4, 6, 3), 24)]
)
def test_the_group_is_closed_and_every_element_does_something_else(shape, size):
    x = np.arange(np.prod(shape)).reshape(shape)
    all_of_x = images_of(x)
    assert len(all_of_x) == size and all_of_x.dtype == x.dtype
    known = {image.tobytes() for image in all_of_x}
    assert len(known) == size
    np.testing.assert_array_equal(all_of_x[0], x)  # the identity comes first
    for image in all_of_x:
        again = images_of(image)
        assert {other.tobytes() for other in again} == known  # closed
        assert any(np.array_equal(other, x) for other in again)  # an inverse


def test_the_elements_are_flips_turns_and_swaps():
    elements = augment.group((4, 4, 3))
    for element, image in zip(elements, images_of(SQUARE), strict=True):
        expected = np.fliplr(SQUARE) if element.flip else SQUARE
        expected = np.rot90(expected, element.turns)[:, :, list(element.channels)]
        np.testing.assert_array_equal(image, expected)


def test_the_laws_of_the_draw():
    group = augment.draw("group", (8, 8, 3), 0, 5, 48_000)
    # Five standard deviations of a count with mean 1000.
    assert np.all(np.abs(np.bincount(group, minlength=48) - 1000) < 5 * np.sqrt(1000))
    which = augment.draw("vdm", (8, 8, 3), 0, 5, 48_000)
    elements = augment.group((8, 8, 3))
    flip = np.mean([elements[i].flip for i in which])
    turns = np.bincount([elements[i].turns for i in which]) / 48_000
    swapped = np.mean([elements[i].channels != (0, 1, 2) for i in which])
    within = 5 * 0.5 / np.sqrt(48_000)
    assert abs(flip - 1 / 2) < within
    np.testing.assert_allclose(turns, [1 / 2, 1 / 6, 1 / 6, 1 / 6], atol=within)
    assert abs(swapped - 1 / 2 * 5 / 6) < within
    told = augment.flags("vdm", which)
    assert set(told) == {0, 1} and np.all((told == 0) == (which == 0))
    oblong = augment.draw("vdm", (8, 6, 1), 0, 5, 48_000)
    np.testing.assert_allclose(np.bincount(oblong) / 48_000, [1 / 4] * 4, atol=within)


def test_draws_differ_between_steps_and_seeds_and_come_again():
    draws = [augment.draw("group", (8, 8, 3), *key, 64) for key in ((0, 1), (0, 2), (1, 1), (0, 1))]
    np.testing.assert_array_equal(draws[0], draws[3])
    assert not np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])


def test_the_condition_holds_class_and_flag():
    labels, flags = np.array([3, 0, 9]), np.array([1, 7, 0])
    assert Condition().of(3, labels, flags) is None
    np.testing.assert_array_equal(Condition(10).of(3, labels), labels)
    np.testing.assert_array_equal(Condition(None, 8).of(3, labels, flags), flags)
    np.testing.assert_array_equal(Condition(None, 8).of(3, labels), [0, 0, 0])
    np.testing.assert_array_equal(Condition(10, 8).of(3, labels, flags), [25, 7, 72])
    np.testing.assert_array_equal(Condition(10, 8).of_samples(np.arange(9, 12)), [72, 0, 8])


def config_of(augmentation, num_classes, name="digits"):
    config = runs.images(num_classes=num_classes)
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, name=name, augment=augmentation)
    )


@pytest.mark.parametrize(
    ("augmentation", "num_classes", "expected"),
    [
        ("none", 10, Condition(10)),
        ("group", 8, Condition(None, 8)),
        ("group", 80, Condition(10, 8)),
        ("vdm", 2, Condition(None, 2)),
        ("vdm", 20, Condition(10, 2)),
    ],
)
def test_the_network_decides_what_it_is_told(augmentation, num_classes, expected):
    config = config_of(augmentation, num_classes)
    dataset = data.load(config.data, "train")
    assert parts.of(config, dataset).condition == expected


@pytest.mark.parametrize(
    ("augmentation", "num_classes", "message"),
    [
        (
            "group",
            None,
            "must be 8, the number of flags of data.augment='group', or 8",
        ),
        (
            "vdm",
            10,
            "the number of flags of data.augment, or 20 for the 10 classes of digits: got 10",
        ),
        ("none", 8, "num_classes is 8, but digits has 10 classes"),
    ],
)
def test_a_network_that_cannot_be_told_is_refused(augmentation, num_classes, message):
    config = config_of(augmentation, num_classes)
    with pytest.raises(UserError, match=message):
        parts.prepare(config)


def test_only_images_are_augmented():
    config = dataclasses.replace(runs.points(), data=config_of("vdm", 2, "mixture").data)
    with pytest.raises(UserError, match=r"data.augment is for images \[h, w, c\]: got .* \[2\]"):
        parts.prepare(config)


@pytest.mark.float32
def test_an_augmented_run_is_evaluated_and_sampled_as_not_augmented(tmp_path, monkeypatch):
    train.train(config_of("vdm", 2), tmp_path)
    run = trained.load(tmp_path)
    seen = []
    of = Condition.of

    def spy(self, size, labels, flags=None):
        seen.append((flags, of(self, size, labels, flags)))
        return seen[-1][1]

    monkeypatch.setattr(Condition, "of", spy)
    record = evaluate.evaluate(run, "test", run.config.evaluate, tmp_path)
    assert np.isfinite(record["bpd"]["mean"])
    assert sample.sample(run, 3, run.config.sample).shape == (3, 8, 8, 1)
    assert seen and all(flags is None and not cond.any() for flags, cond in seen)
