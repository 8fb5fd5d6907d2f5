"""Training: bit-exact when resumed, honest when it fails."""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import pytest

import runs
from vdm.run import config as configs, data, train
from vdm.run.config import DataConfig
from vdm.run.errors import UserError
from vdm.run.training import build, step
from vdm.run.training.batches import batch_indices
from vdm.run.workdir import checkpoint
from vdm.run.workdir.metrics import METRICS_FILE

pytestmark = pytest.mark.float32


def metrics(workdir):
    return [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]


def assert_equal_bits(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# One config of images for all tests here: the same program, compiled once.
images = functools.partial(runs.images, num_classes=10)


@pytest.mark.parametrize(
    "config",
    # Points under laws that are learned as well are resumed at the end of this file.
    [pytest.param(runs.points, marks=pytest.mark.long), images],
    ids=["points", "images"],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, config):
    whole = train.train(config(num_steps=4), tmp_path / "whole")
    train.train(config(num_steps=2), tmp_path / "parts")
    resumed = train.train(config(num_steps=4), tmp_path / "parts")
    assert int(resumed.step) == 4
    assert_equal_bits(whole, resumed)
    losses = [[line["loss"] for line in metrics(tmp_path / part)] for part in ("whole", "parts")]
    assert losses[0] == losses[1]


def test_training_is_its_steps_one_after_the_other(tmp_path):
    config = images()
    dataset = data.load(DataConfig("digits"), "train")
    trainer = build.trainer(config)
    step_fn = jax.jit(functools.partial(step.train_step, trainer=trainer))
    start, state = jax.jit(functools.partial(step.init_state, trainer)), None
    for n in range(3):
        index = batch_indices(0, n, 6, 1500)
        batch = step.Batch(dataset.x[index], dataset.labels[index])
        state = start(batch) if state is None else state
        state, _ = step_fn(state, batch)
    trained = train.train(config, tmp_path)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(trained), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def dispatching(steps, **changed):
    devices = configs.DevicesConfig(steps_per_dispatch=steps)
    return dataclasses.replace(runs.points(**changed), devices=devices)


def test_several_steps_a_dispatch_are_the_same_steps(tmp_path):
    every = {"num_steps": 12, "log_every": 4, "checkpoint_every": 8}
    one = train.train(runs.points(**every), tmp_path / "one")
    train.train(dispatching(2, **{**every, "num_steps": 8}), tmp_path / "two")
    two = train.train(dispatching(2, **every), tmp_path / "two")
    assert_equal_bits(two, train.train(dispatching(2, **every), tmp_path / "whole"))
    assert int(two.step) == 12
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a["step"] == b["step"] and a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_a_run_goes_on_with_other_steps_a_dispatch(tmp_path):
    every = {"log_every": 8, "checkpoint_every": 8}
    # Ended at a step that no dispatch of four would have ended at.
    train.train(runs.points(num_steps=6, **every), tmp_path / "run")
    changed = train.train(dispatching(4, num_steps=16, **every), tmp_path / "run")
    assert int(changed.step) == 16
    assert [line["step"] for line in metrics(tmp_path / "run")] == [6, 8, 16]
    whole = train.train(runs.points(num_steps=16, **every), tmp_path / "whole")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(changed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_a_run_is_not_gone_on_with_on_other_data(tmp_path):
    for name, size in (("one", 30), ("other", 31)):
        (tmp_path / name).mkdir()
        x = np.random.default_rng(0).normal(size=(size, 2))
        np.savez(tmp_path / name / "own.npz", train=x, test=x)

    def config(name, num_steps):
        path = configs.DataConfig("arrays", path=str(tmp_path / name / "own.npz"))
        return dataclasses.replace(runs.points(num_steps=num_steps, batch_size=4), data=path)

    train.train(config("one", 2), tmp_path / "run")
    message = r"run on other data: 30 examples \[2\] of arrays/own.npz there, 31 .* here"
    with pytest.raises(UserError, match=message):
        train.train(config("other", 3), tmp_path / "run")
    (tmp_path / "one").rename(tmp_path / "moved")  # the same data in another place
    assert int(train.train(config("moved", 3), tmp_path / "run").step) == 3


def test_what_is_done_every_so_often_falls_between_dispatches():
    with pytest.raises(UserError, match=r"train.log_every must be a multiple .*: got 2 and 4"):
        configs.from_dict(configs.to_dict(dispatching(4, num_steps=8)))


def test_what_is_written_and_when(tmp_path):
    often = train.train(runs.points(num_steps=5, log_every=1), tmp_path / "often")
    rarely = runs.points(num_steps=5, log_every=3, checkpoint_every=2, checkpoints_kept=2)
    assert_equal_bits(often, train.train(rarely, tmp_path / "rarely"))
    with checkpoint.manager(tmp_path / "rarely", kept=2) as checkpoints:
        assert checkpoints.all_steps() == [4, 5]
    each, lines = metrics(tmp_path / "often"), metrics(tmp_path / "rarely")
    assert [line["step"] for line in each] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines] == [2, 3, 4, 5]
    # A line is the mean of the steps since the line before.
    assert lines[0]["loss"] == pytest.approx((each[0]["loss"] + each[1]["loss"]) / 2)
    assert lines[1]["loss"] == pytest.approx(each[2]["loss"])


def test_training_lowers_the_loss_and_says_so(tmp_path):
    config = runs.points(num_steps=200, log_every=20, batch_size=128)
    train.train(config, tmp_path)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(20, 201, 20))
    assert lines[-1]["loss"] < lines[0]["loss"] - 1.0
    for line in lines:
        terms = line["prior"] + line["reconstruction"] + line["diffusion"]
        assert line["loss"] == pytest.approx(terms, rel=1e-4)


def test_metrics_past_the_checkpoint_are_dropped_on_resuming(tmp_path):
    runs.copy_of("points", tmp_path)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 6, "loss": 0.0}\n{"step": 8, "lo')
    train.train(runs.points(num_steps=6), tmp_path)
    assert [line["step"] for line in metrics(tmp_path)] == [2, 4, 6]
    assert metrics(tmp_path)[-1]["loss"] != 0.0


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    good = train.train(runs.points(num_steps=2), tmp_path)
    with checkpoint.manager(tmp_path, kept=2) as checkpoints:
        broken = good._replace(params=jax.tree.map(lambda p: p * np.nan, good.params))
        checkpoint.save(checkpoints, broken._replace(step=np.int32(3)))
    with pytest.raises(UserError, match=r"is nan at step 4: stopped"):
        train.train(runs.points(num_steps=6, checkpoint_every=1), tmp_path)
    with checkpoint.manager(tmp_path, kept=2) as checkpoints:
        assert checkpoints.all_steps() == [2, 3]


def test_a_run_that_diverges_names_the_step(tmp_path):
    config = runs.points(num_steps=50, log_every=50)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=1e30, clip_norm=0.0)
    with pytest.raises(UserError, match=r"is (nan|inf) at step \d+: stopped"):
        train.train(dataclasses.replace(config, optimizer=optimizer), tmp_path)
    with checkpoint.manager(tmp_path, kept=2) as checkpoints:
        assert checkpoints.all_steps() == []


def test_parameters_that_are_not_finite_are_not_kept(tmp_path):
    config = runs.points(num_steps=1)
    # A finite loss, and an update beyond float32.
    rate = {"learning_rate": 3e38, "weight_decay": 10.0, "warmup_steps": 0}
    optimizer = dataclasses.replace(config.optimizer, **rate)
    with pytest.raises(UserError, match="parameters are not finite after step 1: stopped"):
        train.train(dataclasses.replace(config, optimizer=optimizer), tmp_path)
    with checkpoint.manager(tmp_path, kept=2) as checkpoints:
        assert checkpoints.all_steps() == []


def test_a_workdir_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with checkpoint.manager(pathlib.Path("run"), kept=1) as checkpoints:
        assert pathlib.Path(checkpoints.directory) == tmp_path / "run/checkpoints"


def test_the_batch_must_fit_the_split(tmp_path):
    with pytest.raises(
        UserError, match="batch_size is 1501, but the train split of digits has 1500"
    ):
        train.train(runs.images(batch_size=1501), tmp_path)
    assert not list(tmp_path.iterdir())


def test_learned_ends_move_and_stay_in_order(tmp_path):
    lines = metrics(runs.copy_of("classes", tmp_path))
    assert lines[-1]["log_snr_max"] != pytest.approx(8.0, abs=1e-4)
    assert all(line["log_snr_max"] > line["log_snr_min"] for line in lines)


def test_a_damaged_line_of_the_metrics_is_named(tmp_path):
    runs.copy_of("points", tmp_path)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write("{broken\n")
    with pytest.raises(
        UserError, match=r"metrics.jsonl is damaged: cannot read the line '{broken'"
    ):
        train.train(runs.points(num_steps=6), tmp_path)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    runs.copy_of("points", tmp_path)
    wider = runs.points()
    wider.model.network["width"] = 24
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="is damaged or belongs to another model"):
        train.train(wider, tmp_path)


@pytest.mark.parametrize(
    ("schedule", "law"),
    [("learned_monotone", {"name": "schedule"}), ("linear", {"name": "adaptive", "num_bins": 7})],
)
def test_learned_noise_levels_are_resumed_bit_for_bit(tmp_path, schedule, law):
    def config(num_steps):
        config = runs.points(num_steps=num_steps)
        config.model.schedule["name"] = schedule
        objective = dataclasses.replace(config.objective, law=law)
        return dataclasses.replace(config, objective=objective)

    whole = train.train(config(4), tmp_path / "whole")
    train.train(config(2), tmp_path / "parts")
    assert_equal_bits(whole, train.train(config(4), tmp_path / "parts"))
    moved = jax.tree.leaves((whole.params["schedule"], whole.law_state))
    assert len(moved) > 0 and np.any(np.asarray(moved[0]) != 0)
