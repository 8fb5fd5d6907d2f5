"""Validation while training: which examples, what is measured and kept, when training ends."""

import dataclasses
import json
import os
import shutil
import signal

import numpy as np
import pytest

import runs
import vdm.run
from vdm.run import cli, data, evaluate, train, trained
from vdm.run.data import validation
from vdm.run.errors import UserError
from vdm.run.report import read, words
from vdm.run.system.signals import Terminated
from vdm.run.training import parts
from vdm.run.workdir import checkpoint, validations

pytestmark = pytest.mark.float32

EXAMPLES = 40


def watched(rate=1e-3, **changed):
    """The points with 40 examples held out, validated after every other step."""
    settings = {"num_steps": 8, "validation_examples": EXAMPLES, "validate_every": 2, **changed}
    config = runs.points(log_every=8, checkpoint_every=3, checkpoints_kept=3, **settings)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=rate, ema_decay=0.0)
    return dataclasses.replace(config, optimizer=optimizer)


# With this rate the bound falls until step 6 and then grows for some steps.
UPS_AND_DOWNS = 0.02


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run that was watched, and that kept its best checkpoint."""
    workdir = tmp_path_factory.mktemp("watched")
    train.train(watched(UPS_AND_DOWNS, keep="best"), workdir)
    return workdir


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_the_validation_split_is_held_out_of_training_and_not_of_the_test():
    config = watched()
    whole, test = (data.load(config.data, split).x for split in ("train", "test"))
    held_out, rest = (validation.load(config, split) for split in ("validation", "train"))
    assert (held_out.split, rest.split) == ("validation", "train")
    assert len(held_out) == EXAMPLES and len(rest) == len(whole) - EXAMPLES
    together = np.concatenate([held_out.x, rest.x])
    np.testing.assert_array_equal(np.sort(together, axis=0), np.sort(whole, axis=0))
    assert len(np.unique(together, axis=0)) == len(np.unique(whole, axis=0))
    np.testing.assert_array_equal(validation.load(config, "test").x, test)
    # Not the first ones, whose order may mean something.
    assert np.ptp(validation.positions(len(whole), EXAMPLES, held_out=True)) > len(whole) / 2


def test_what_is_held_out_has_no_part_in_the_scale(tmp_path):
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(50, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    made = watched(batch_size=4)
    found = dataclasses.replace(
        made.data, name="arrays", path=str(tmp_path / "x.npy"), standardise="all"
    )
    config = parts.prepare(dataclasses.replace(made, data=found)).trainer.config
    trained_on = validation.load(config, "train").x.astype(np.float64)
    assert len(trained_on) == 5
    likelihood = config.model.likelihood
    np.testing.assert_allclose(likelihood["mean"], trained_on.mean(), rtol=1e-12)
    np.testing.assert_allclose(likelihood["std"], trained_on.std(), rtol=1e-12)


def test_a_run_is_trained_on_the_rest(workdir):
    assert json.loads((workdir / "data.json").read_text())["num_examples"] == (
        len(data.load(watched().data, "train")) - EXAMPLES
    )


def test_validation_is_the_bound_of_the_split_that_evaluation_measures(workdir):
    config = watched(UPS_AND_DOWNS)
    run = vdm.run.load(workdir)
    settings = dataclasses.replace(config.evaluate, levels_per_example=2, seed=config.seed)
    result = evaluate.measure(run, "validation", settings, workdir).headline
    assert (result.origin.split, result.bpd.n) == ("validation", EXAMPLES)
    [record] = [one for one in metrics(workdir) if one["step"] == run.step]
    assert record["validation"] == pytest.approx(result.bpd.mean, rel=1e-6)
    assert record["validation_sem"] == pytest.approx(result.bpd.sem, rel=1e-6)
    sentence = words.sentence(read.read(workdir), result)
    assert f"Mean over {EXAMPLES} validation examples" in sentence


def test_validations_are_compared_example_by_example(workdir):
    records = [one for one in metrics(workdir) if "validation" in one]
    assert [one["step"] for one in records] == [2, 4, 6, 8]
    with np.load(workdir / "validation.npz") as found:
        bpd = found["ema"]
    for i, record in enumerate(records):
        assert record["validation"] == pytest.approx(bpd[i].mean())
        if i:
            best = min(range(i), key=lambda k: bpd[k].mean())
            change = bpd[i] - bpd[best]
            assert record["validation_change"] == pytest.approx(change.mean())
            sem = change.std(ddof=1) / np.sqrt(EXAMPLES)
            assert record["validation_change_sem"] == pytest.approx(sem)
    # The same noise each time: a small change is seen.
    assert 2 * records[1]["validation_change_sem"] < records[1]["validation_sem"]


def test_the_best_checkpoint_is_kept_and_used(workdir):
    records = [one for one in metrics(workdir) if "validation" in one]
    best = min(records, key=lambda one: one["validation"])
    assert 2 < best["step"] < 8, "this run has to become better, and then worse"
    assert vdm.run.load(workdir).step == best["step"]
    assert [path.name for path in checkpoint.folder_of(workdir, best=True).glob("[0-9]*")] == [
        str(best["step"])
    ]
    with checkpoint.manager(workdir, kept=2) as checkpoints:
        assert checkpoints.latest_step() == 8


def test_a_run_that_lost_its_last_steps_comes_to_the_same_best(workdir, tmp_path):
    before = metrics(workdir)
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    # As after kill −9: the best one is of a later step than the latest one.
    for step in (6, 8):
        shutil.rmtree(tmp_path / f"checkpoints/{step}")
    step = vdm.run.load(workdir).step
    assert vdm.run.load(tmp_path).step == step > 3
    train.train(watched(UPS_AND_DOWNS, keep="best"), tmp_path)
    assert vdm.run.load(tmp_path).step == step
    timeless = [{k: v for k, v in one.items() if "second" not in k} for one in metrics(tmp_path)]
    assert timeless == [{k: v for k, v in one.items() if "second" not in k} for one in before]


def test_a_best_checkpoint_that_a_kill_prevented_is_kept_on_resuming(tmp_path):
    train.train(watched(UPS_AND_DOWNS, keep="best", num_steps=6), tmp_path)
    # Both are written in the background: the latest one may be whole before the best one.
    shutil.rmtree(checkpoint.folder_of(tmp_path, best=True) / "6")
    train.train(watched(UPS_AND_DOWNS, keep="best", num_steps=8), tmp_path)
    assert vdm.run.load(tmp_path).step == 6


def test_a_validation_that_sigterm_did_not_wait_for_is_made_up_for(workdir, tmp_path):
    def stop_after_5(record):
        if record["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    config = watched(UPS_AND_DOWNS, keep="best")
    every = dataclasses.replace(config.train, checkpoint_every=5)
    config = dataclasses.replace(config, train=every)
    with pytest.raises(Terminated, match="at step 6"):
        train.train(config, tmp_path, on_record=stop_after_5)
    assert list(validations.read(tmp_path, EXAMPLES).steps) == [2, 4]
    train.train(config, tmp_path)
    for one, other in zip(
        *(validations.read(w, EXAMPLES) for w in (tmp_path, workdir)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert vdm.run.load(tmp_path).step == 6


def test_the_best_is_that_of_the_validations_since_it_was_asked_for(tmp_path):
    train.train(watched(UPS_AND_DOWNS), tmp_path)
    train.train(watched(UPS_AND_DOWNS, keep="best", num_steps=10), tmp_path)
    found = validations.read(tmp_path, EXAMPLES)
    of = dict(zip(found.steps.tolist(), found.ema.mean(1), strict=True))
    assert of[6] < of[8] < of[10], "the best of all was not kept, and the last is not the best"
    assert vdm.run.load(tmp_path).step == 8


def test_training_ends_after_validations_without_gain(tmp_path, capsys):
    config = watched(UPS_AND_DOWNS, num_steps=100, patience=2, keep="best")
    state = train.train(config, tmp_path)
    said = capsys.readouterr().err
    found = validations.read(tmp_path, EXAMPLES)
    assert int(state.step) == found.steps[-1] < 100 and found.since_best == 2
    assert f"stopped at step {int(state.step)}: no gain in the last 2 validations" in said
    assert vdm.run.load(tmp_path).step == found.steps[found.best]
    # The same command has nothing to add.
    again = train.train(config, tmp_path)
    assert int(again.step) == int(state.step)
    assert "no gain in the last 2 validations" in capsys.readouterr().err
    # More patience resumes.
    more = dataclasses.replace(config, train=dataclasses.replace(config.train, patience=3))
    assert int(train.train(more, tmp_path).step) > int(state.step)


def test_what_came_after_a_roll_back_is_forgotten(tmp_path):
    bound = np.arange(6.0).reshape(3, 2)[::-1]
    found = validations.Validations(np.array([2, 4, 6]), bound, bound)
    assert (found.best, found.since_best) == (2, 0)
    assert (found.until(5).best, len(found.until(5).steps)) == (1, 2)
    assert validations.none(2).since_best == 0
    state = train.train(runs.points(), runs.copy_of("points", tmp_path))
    with checkpoint.manager(tmp_path, kept=3, best=True) as best:
        for step in (1, 3):
            checkpoint.save(best, state._replace(step=state.step * 0 + step))
        checkpoint.drop_after(best, 2)
        assert best.all_steps() == [1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"validation_examples": 0, "keep": "best"}, "train.keep='best' needs a validation split"),
        ({"validation_examples": 0, "patience": 1}, "train.patience=1 needs a validation split"),
        ({"keep": "beste"}, "unknown train.keep 'beste'.*'best'"),
        ({"validation_examples": 10**6}, "validation_examples is 1,000,000, but the train split"),
        ({"validation_examples": 7, "validate_every": 0}, "validate_every must be at least 1"),
    ],
)
def test_what_cannot_be_watched_is_one_line(tmp_path, changed, message):
    with pytest.raises(UserError, match=message) as error:
        train.train(watched(**changed), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_run_without_validation_says_so(tmp_path, capsys):
    workdir = runs.copy_of("points", tmp_path)
    capsys.readouterr()
    assert cli.main(["evaluate", f"--workdir={workdir}", "--split=validation"]) == 2
    error = capsys.readouterr().err
    assert "trained with train.validation_examples=0" in error and error.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"PK", None])
def test_a_damaged_record_of_validations_is_named(workdir, tmp_path, content):
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "validation.npz"
    if content is None:
        np.savez(path, steps=[1], ema=[[1.0]], raw=[[1.0]])
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"validation\.npz .*move it away") as error:
        validations.read(tmp_path, EXAMPLES)
    assert "\n" not in str(error.value)


def test_the_report_shows_validations(workdir, tmp_path):
    out = tmp_path / "report.html"
    assert cli.main(["report", f"--workdir={workdir}", "--num=0", f"--out={out}"]) == 0
    step = vdm.run.load(workdir).step
    assert f"It is least at step {step}, with" in out.read_text()


def test_training_examples_of_other_commands_are_those_of_training(workdir):
    run = trained.load(workdir)
    np.testing.assert_array_equal(
        trained.dataset(run, "train").x, validation.load(watched(), "train").x
    )
