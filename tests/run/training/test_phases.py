"""A run resumed with another rate, batch or number of steps: what it does, and what it records."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import runs
from vdm.run import cli, train
from vdm.run.config import to_dict
from vdm.run.errors import UserError
from vdm.run.training import optim
from vdm.run.workdir import checkpoint, phases

pytestmark = pytest.mark.float32


def config(rate=1e-3, **changed):
    """The points with a cosine that ends at the last step, from the first step on."""
    made = runs.points(**{"num_steps": 4, "log_every": 1, "checkpoint_every": 2, **changed})
    optimizer = dataclasses.replace(
        made.optimizer, learning_rate=rate, decay="cosine", warmup_steps=0
    )
    return dataclasses.replace(made, optimizer=optimizer)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of one phase."""
    workdir = tmp_path_factory.mktemp("first")
    train.train(config(), workdir)
    return workdir


@pytest.fixture
def workdir(first, tmp_path):
    return shutil.copytree(first, tmp_path / "run")


def test_a_run_of_one_phase_has_no_record(workdir):
    assert phases.read(workdir) == () and not (workdir / phases.PHASES_FILE).exists()


def test_another_rate_and_more_steps_are_a_new_phase(workdir, capsys):
    new = config(rate=3e-3, num_steps=7)
    state = train.train(new, workdir)
    said = capsys.readouterr().err
    assert "a new phase from step 4 on: optimizer.learning_rate is 0.003, was 0.001; " in said
    assert "train.num_steps is 7, was 4" in said
    assert phases.read(workdir) == (phases.Phase(0, config()), phases.Phase(4, new))
    assert json.loads((workdir / "config.json").read_text()) == to_dict(new)
    assert int(state.step) == 7
    # The same command again has no news.
    train.train(new, workdir)
    assert "phase" not in capsys.readouterr().err and len(phases.read(workdir)) == 2
    # A third one, with the first one's rate.
    last = config(num_steps=8)
    train.train(last, workdir)
    assert [phase.step for phase in phases.read(workdir)] == [0, 4, 7]


def test_the_rate_at_a_step_is_what_the_new_config_says_of_that_step(workdir):
    """Of the first update after a resume: where Adam's moments are known, it is the rate alone."""
    old = train.train(config(), workdir)  # nothing left to do: the state at step 4
    before = jax.device_get(old.params)
    paths = {}
    for rate in (1e-3, 2e-3):
        folder = shutil.copytree(workdir, workdir.with_name(f"{rate}"))
        paths[rate] = jax.device_get(train.train(config(rate, num_steps=5), folder).params)
    moved = {
        rate: np.concatenate(
            [(a - b).ravel() for a, b in zip(*map(jax.tree.leaves, (after, before)), strict=True)]
        )
        for rate, after in paths.items()
    }
    # Rates of one cosine over five steps at step 4, which the old cosine had brought to 0.
    size = 0.5 * (1 + np.cos(np.pi * 4 / 5))
    found = [float(optim.learning_rate(config(r).optimizer, r, 5)(4)) for r in (1e-3, 2e-3)]
    np.testing.assert_allclose(found, [1e-3 * size, 2e-3 * size], rtol=1e-5)
    large = np.abs(moved[1e-3]) > 1e-5
    assert large.sum() > 100
    np.testing.assert_allclose(moved[2e-3][large] / moved[1e-3][large], 2.0, rtol=1e-2)


def test_a_phase_that_was_stopped_is_resumed_bit_for_bit(workdir, tmp_path):
    new = config(rate=3e-3, num_steps=8, batch_size=20)
    whole = train.train(new, shutil.copytree(workdir, tmp_path / "whole"))
    half = train.train(new, workdir)
    shutil.rmtree(workdir / "checkpoints/8")  # as if it had been killed after step 6
    half = train.train(new, workdir)
    for a, b in zip(*map(jax.tree.leaves, (whole, half)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert [phase.step for phase in phases.read(workdir)] == [0, 4]


def test_a_run_that_fell_back_is_all_of_the_last_phase_from_there(workdir):
    new = config(num_steps=6)
    train.train(new, workdir)
    for step in (4, 6):
        shutil.rmtree(workdir / f"checkpoints/{step}", ignore_errors=True)
    assert checkpoint.latest_step(workdir) == 0  # two are kept: nothing is left
    train.train(new, workdir)
    assert phases.read(workdir) == ()
    phases.begin(workdir, config(), new, 5)
    phases.back_to(workdir, 3)
    assert [phase.step for phase in phases.read(workdir)] == [0, 3]


def test_a_run_cannot_be_shorter_than_it_is(workdir):
    with pytest.raises(UserError, match=r"num_steps is 3, but .* holds a run of 4 steps already"):
        train.train(config(num_steps=3), workdir)
    assert json.loads((workdir / "config.json").read_text()) == to_dict(config())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"phases\.json must hold a list"),
        ("[{}]", r"phases\.json: \[0\]\.step is missing"),
        ('[{"step": 0}]', r"phases\.json: \[0\]\.config: a config must be a block"),
        ('[{"step": 0, "config": {"seed": "x"}}]', r"phases\.json: \[0\]\.config: "),
        ("[", r"phases\.json"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, content, message):
    (tmp_path / phases.PHASES_FILE).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        phases.read(tmp_path)
    assert "\n" not in str(error.value)


def test_the_report_names_what_changed(workdir, tmp_path):
    train.train(config(rate=3e-3, num_steps=6), workdir)
    out = tmp_path / "report.html"
    assert cli.main(["report", f"--workdir={workdir}", "--num=0", f"--out={out}"]) == 0
    text = out.read_text()
    assert "The run was resumed with another config" in text
    assert "optimizer.learning_rate" in text and "0.003" in text
