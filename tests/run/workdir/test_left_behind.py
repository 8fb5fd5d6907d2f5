"""What a refused, a killed or a tampered run leaves behind."""

import os
import shutil
import time

import pytest

import runs
from vdm.run import cli, trained
from vdm.run.errors import UserError
from vdm.run.system import disk, files, lock

pytestmark = pytest.mark.float32


def test_a_refused_training_leaves_no_new_workdir(tmp_path, monkeypatch, capsys):
    file = runs.write_config_file(tmp_path / "c.py", runs.points())
    run = tmp_path / "run"
    monkeypatch.setattr(disk, "check_room", refuse)
    assert cli.main(["train", f"--config={file}", f"--workdir={run}"]) == 2
    assert "no room" in capsys.readouterr().err and not run.exists()
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    assert cli.main(["train", f"--config={file}", f"--workdir={run}"]) == 2
    assert (run / "notes.txt").read_text() == "mine" and not (run / "config.json").exists()


def test_what_another_run_has_just_taken_is_not_removed(tmp_path, monkeypatch):
    file = runs.write_config_file(tmp_path / "c.py", runs.points())
    run = tmp_path / "run"

    def taken(workdir):
        run.mkdir()
        (run / "of_the_other").touch()
        raise UserError("another run is training")

    monkeypatch.setattr(lock, "held", taken)
    assert cli.main(["train", f"--config={file}", f"--workdir={run}"]) == 2
    assert [path.name for path in run.iterdir()] == ["of_the_other"]


def refuse(*args):
    raise UserError("no room")


def test_temporary_files_of_a_killed_process_are_swept_after_an_hour(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "a.json") as temporary:
        name = temporary.name
        raise KeyboardInterrupt
    old, young, other = (tmp_path / n for n in (name, ".b.json.abcdefgh.json", ".hidden"))
    for path in (old, young, other):
        path.write_text("")
    long_ago = time.time() - 2 * files.KEPT_SECONDS
    for path in (old, other):
        os.utime(path, (long_ago, long_ago))
    files.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([young.name, ".hidden"])


def test_a_checkpoint_in_a_folder_of_another_step_is_passed_over(tmp_path, capsys):
    run = runs.copy_of("points", tmp_path / "run")
    folder = run / "checkpoints"
    step = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    shutil.copytree(folder / str(step), folder / str(step + 500))
    assert trained.load(run).step == step
    said = capsys.readouterr().err
    assert f"it holds step {step}; was its folder renamed?" in said
    assert f"using the checkpoint of step {step} instead" in said
    for path in folder.iterdir():
        if path.name.isdigit() and int(path.name) <= step:
            shutil.rmtree(path)
    with pytest.raises(UserError, match="was its folder renamed"):
        trained.load(run)
