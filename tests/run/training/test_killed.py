"""Runs that are killed, ended or starved by the machine: what they leave is good to go on from."""

import itertools
import os
import random
import re
import signal
import time

import jax
import numpy as np
import pytest

import runs
from lives import Lives
from vdm.run import cli, data, mesh
from vdm.run.config import DataConfig
from vdm.run.errors import UserError
from vdm.run.system import lock
from vdm.run.training import build, program
from vdm.run.training.step import Batch
from vdm.run.workdir import checkpoint, validations
from vdm.run.workdir.metrics import METRICS_FILE

pytestmark = pytest.mark.float32


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    with Lives(tmp_path_factory.mktemp("lives")) as lives:
        yield lives


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    # More steps than any of these runs is given the time for; a record and a look every step.
    config = runs.points(num_steps=100_000, log_every=1, checkpoint_every=10)
    path = runs.write_config_file(tmp_path_factory.mktemp("config") / "points.py", config)
    return ["train", f"--config={path}"]


@pytest.fixture(scope="module")
def template():
    config = runs.points()
    dataset = data.load(DataConfig("mixture"), "train")
    trainer = build.trainer(config)
    # The killed runs have one device, this process two.
    return program.template(trainer, mesh.for_training(config), Batch(dataset.x[:1], None))


def wait_for(happened, timeout=120.0):
    end = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def records(workdir):
    path = workdir / METRICS_FILE
    return path.read_text().count("\n") if path.exists() else 0


def forget_records(workdir):
    path = workdir / METRICS_FILE
    if path.exists():
        path.write_text("")


def written(workdir):
    """Return the steps whose checkpoints are complete."""
    return sorted(int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit())


def unfinished(workdir):
    """Return the names of the checkpoints that are being written, or were when a run died."""
    return {path.name for path in workdir.glob("checkpoints/*tmp*")}


def test_kill_9_at_any_moment_loses_no_more_than_the_steps_since_the_last_checkpoint(
    lives, arguments, template, tmp_path, pytestconfig
):
    moments, saves, steps = (20, 3, 5) if pytestconfig.getoption("--all") else (6, 1, 3)
    chance = random.Random(0)
    workdir, whole = tmp_path / "killed", tmp_path / "whole"
    left, during_save = {}, 0
    for moment in range(moments):
        forget_records(workdir)
        before, old = written(workdir), unfinished(workdir)
        process = lives.start(*arguments, f"--workdir={workdir}")
        if moment % 5 == 4:  # while it starts: imports are done, so it soon reads and tidies up
            time.sleep(chance.uniform(0.0, 1.0))
        elif moment % 2:  # during a save, after one that was completed
            wait_for(lambda before=before: written(workdir) != before)
            wait_for(lambda old=old: unfinished(workdir) - old)
            time.sleep(chance.uniform(0.0, 0.05))
        else:  # after some steps
            some = chance.randint(1, 25)
            wait_for(lambda some=some: records(workdir) >= some)
            time.sleep(chance.uniform(0.0, 0.05))
        complete = written(workdir)
        os.kill(process, signal.SIGKILL)
        assert lives.wait()[0] == -signal.SIGKILL
        during_save += bool(unfinished(workdir) - old)
        if complete:
            state = checkpoint.load(workdir, template)
            assert int(state.step) >= complete[-1]
            left[int(state.step)] = state
    print(during_save, list(left))
    assert during_save >= saves and len(left) >= steps
    assert sorted(left) == list(left)

    # The last life ends by SIGTERM; the run that nobody disturbed is as long.
    forget_records(workdir)
    process = lives.start(*arguments, f"--workdir={workdir}")
    wait_for(lambda: records(workdir) > 1)
    os.kill(process, signal.SIGTERM)
    code, stderr = lives.wait()
    assert code == cli.EXIT_TERMINATED
    state = checkpoint.load(workdir, template)
    left[int(state.step)] = state
    assert f"vdm: stopped by SIGTERM at step {int(state.step)}" in stderr
    more = [f"--config.train.num_steps={int(state.step)}", "--config.train.checkpoints_kept=1000"]
    assert lives.run(*arguments, f"--workdir={whole}", *more)[0] == 0
    with checkpoint.manager(whole, kept=1000) as checkpoints:
        for step, state in left.items():
            expected = checkpoint.read(checkpoints, step, template)
            for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
                np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_kill_9_leaves_the_best_checkpoint(lives, arguments, template, tmp_path):
    more = ("validation_examples=20", "validate_every=1", "keep=best")
    arguments = [*arguments, *(f"--config.train.{one}" for one in more), f"--workdir={tmp_path}"]
    folder = checkpoint.folder_of(tmp_path, best=True)

    def best():
        return max((int(p.name) for p in folder.glob("*") if p.name.isdigit()), default=0)

    kept = 0
    for moment in range(3):
        process = lives.start(*arguments)
        # A checkpoint every step, nearly all of them the best so far: one is being written.
        wait_for(lambda kept=kept: best() > kept + 12)
        time.sleep(0.01 * moment)
        os.kill(process, signal.SIGKILL)
        assert lives.wait()[0] == -signal.SIGKILL
        state = checkpoint.load(tmp_path, template, best=True)
        assert int(state.step) > kept
        kept = int(state.step)
        found = validations.read(tmp_path, 20).until(kept)
        assert found.since_best == 0 and found.steps[-1] == kept


def test_sigterm_ends_a_run_that_goes_on_from_the_very_step(lives, arguments, tmp_path):
    process = lives.start(*arguments, f"--workdir={tmp_path}", "--config.train.log_every=7")
    wait_for(lambda: records(tmp_path) > 0)
    os.kill(process, signal.SIGTERM)
    code, stderr = lives.wait()
    (step,) = re.findall(
        r"vdm: stopped by SIGTERM at step (\d+); run the same command to resume", stderr
    )
    assert code == 143 and "Traceback" not in stderr
    assert written(tmp_path)[-1] == int(step)


def test_a_workdir_is_one_runs_and_free_after_kill_9(lives, arguments, tmp_path, capsys):
    workdir = f"--workdir={tmp_path}"
    process = lives.start(*arguments, workdir)
    wait_for(lambda: records(tmp_path) > 0)
    assert cli.main([*arguments, workdir]) == cli.EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert f"another run is training in {tmp_path} (process {process})" in error
    assert error.count("\n") == 1
    os.kill(process, signal.SIGKILL)
    lives.wait()
    with lock.held(tmp_path):
        pass


def test_a_disk_that_fills_up_is_one_line_and_no_traceback(lives, arguments, tmp_path):
    # Large enough for the config and the metrics, too small for the parameters.
    often = ["--config.train.checkpoint_every=2", "--config.train.log_every=1000"]
    code, stderr = lives.run(*arguments, *often, f"--workdir={tmp_path}", largest_file=4096)
    assert code == cli.EXIT_USER_ERROR
    last = stderr.splitlines()[-1]
    assert last.startswith("vdm: cannot write a checkpoint into") and "Traceback" not in stderr
    assert written(tmp_path) == []


def test_the_lock_holds_within_a_process_and_goes_with_the_block(tmp_path):
    with lock.held(tmp_path):
        with pytest.raises(UserError, match=rf"\(process {os.getpid()}\)"), lock.held(tmp_path):
            pass
        # The refused one has not taken the name out of the file.
        assert (tmp_path / lock.LOCK_FILE).read_text() == f"{os.getpid()}\n"
    for _ in itertools.repeat(None, 2):
        with lock.held(tmp_path):
            pass
