"""The command line: the whole path from a config file to samples, and every bad input."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

import runs
from vdm.run import cli
from vdm.run.errors import UserError
from vdm.run.training import build

pytestmark = pytest.mark.float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    runs.write_config_file(folder / "points.py", runs.points())
    runs.write_config_file(folder / "images.py", runs.images())
    runs.write_config_file(folder / "unet.py", runs.images(runs.UNET))
    flat = runs.points()
    flat.model.network.clear()
    flat.model.network.update(runs.UNET)
    runs.write_config_file(folder / "flat.py", flat)
    runs.write_config_file(folder / "classes.py", runs.images(num_classes=7))
    arguments = [f"--config={folder / 'points.py'}", f"--workdir={folder / 'run'}"]
    assert cli.main(["train", *arguments, "--config.train.num_steps=2"]) == 0
    return folder


def test_evaluate_and_sample_need_only_the_workdir(folder, capsys):
    workdir = f"--workdir={folder / 'run'}"
    assert cli.main(["evaluate", workdir, "--levels_per_example=1", "--num_steps=10,inf"]) == 0
    assert "bits per dimension" in capsys.readouterr().out
    record = json.loads((folder / "run/evaluation.json").read_text())
    assert record["bpd"]["n"] == 4000 and len(record["results"]) == 4
    assert (record["law"], record["params"]) == ("schedule", "ema")
    chosen = ["--params=raw", "--law=sigmoid", "--levels_per_example=1"]
    assert cli.main(["evaluate", workdir, *chosen]) == 0
    record = json.loads((folder / "run/evaluation.json").read_text())
    assert (record["law"], record["params"]) == ("sigmoid", "raw")
    out = folder / "points.png"
    assert cli.main(["sample", workdir, "--num=9", "--steps=3", f"--out={out}"]) == 0
    assert out.stat().st_size > 1000


def test_images_take_the_same_path(folder, tmp_path):
    run = f"--workdir={tmp_path / 'run'}"
    arguments = [f"--config={folder / 'images.py'}", run, "--config.train.num_steps=1"]
    assert cli.main(["train", *arguments]) == 0
    out = tmp_path / "digits.png"
    assert cli.main(["sample", run, "--num=4", "--steps=2", f"--out={out}"]) == 0
    assert out.stat().st_size > 100


def test_train_without_a_config_resumes(folder, capsys):
    assert cli.main(["train", f"--workdir={folder / 'run'}"]) == 0
    assert "step 2" in capsys.readouterr().out


BAD_TRAINING = {
    "unknown config key": ("points", ["--config.train.num_stepz=3"], "'train.num_steps'?"),
    "unknown block": ("points", ["--config.trian.num_steps=3"], "'train'?"),
    "wrong type": ("points", ["--config.train.num_steps=abc"], "num_steps=abc"),
    "unknown data set": ("points", ["--config.data.name=mixtur"], "'mixture'?"),
    "unknown schedule": ("points", ["--config.model.schedule.name=liner"], "'linear'?"),
    "unknown network": ("points", ["--config.model.network.name=mpl"], "'mlp'?"),
    "unknown prediction": ("points", ["--config.model.prediction=scor"], "'score'?"),
    "reversed ends": ("points", ["--config.model.schedule.log_snr_max=-9.0"], "reversed?"),
    "negative end": ("points", ["--config.model.schedule.log_snr_max=-1.0"], "must be positive"),
    "wrong rank": ("flat", [], "got shape (1, 2)"),
    "unknown sampler": ("points", ["--config.sample.sampler=ancestrl"], "'ancestral'?"),
    "bad seed": ("points", ["--config.seed=-1"], "seed must be at least 0: got -1"),
    "not finite": ("points", ["--config.optimizer.clip_norm=inf"], "must be finite"),
    "negative width": ("points", ["--config.model.network.width=-4"], "width must be"),
    "key of another network": (
        "unet",
        ["--config.model.network.name=mlp"],
        "unknown argument of model.network mlp '",
    ),
    "large batch": ("images", ["--config.train.batch_size=2000"], "has 1500 examples"),
    "levels": ("images", ["--config.model.likelihood.levels=16"], "has 17 levels"),
    "wrong dtype": ("images", ["--config.data.name=mixture"], "got float32 data"),
    "classes": ("classes", [], "digits has 10 classes"),
    "stray argument": ("points", ["--bogus=1"], "--bogus=1"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
@pytest.mark.usefixtures("unchecked")
def test_a_bad_config_is_one_clear_line_before_anything_is_written(case, folder, tmp_path, capsys):
    name, overrides, message = BAD_TRAINING[case]
    arguments = [f"--config={folder / name}.py", f"--workdir={tmp_path / 'new'}", *overrides]
    assert cli.main(["train", *arguments]) == cli.EXIT_USER_ERROR
    assert_one_line(capsys, message)
    assert not (tmp_path / "new").exists()


def assert_one_line(capsys, message):
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize(
    ("block", "key", "value", "message"),
    [
        ("schedule", "log_snr_max", "a", "model.schedule.log_snr_max must be int or float"),
        ("schedule", "log_snr_min", None, "must be int or float: got None"),
        ("network", "residual", "no", "model.network.residual must be bool: got 'no'"),
        ("network", "width", True, "model.network.width must be int: got True"),
        ("likelihood", "scale", [1.0], "model.likelihood.scale must be int or float"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_named(block, key, value, message):
    config = runs.points()
    getattr(config.model, block)[key] = value
    with pytest.raises(UserError, match=message):
        build.model(config)


BROKEN_FILES = {
    "empty": ("", "no function get_config"),
    "syntax": ("def get_config(:", "SyntaxError"),
    "raises": ("def get_config():\n    raise RuntimeError('no')", "RuntimeError: no"),
    "none": ("def get_config():\n    return None", "must return a ConfigDict"),
    "argument": ("def get_config(x):\n    return x", "get_config"),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_a_broken_config_file_is_one_clear_line(case, tmp_path):
    text, message = BROKEN_FILES[case]
    (tmp_path / "broken.py").write_text(text)
    # In a process of its own: a config file is a module, and Python remembers modules.
    command = [sys.executable, "-c", BROKEN, f"--config={tmp_path / 'broken.py'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]  # absl may have warned before
    assert last.startswith("vdm: ") and message in last


BROKEN = """
import sys
from vdm.run import cli
sys.exit(cli.main(["train", "--workdir=nowhere", *sys.argv[1:]]))
"""


@pytest.mark.usefixtures("unchecked")
def test_a_dtype_that_the_likelihood_does_not_model(tmp_path, capsys):
    config = runs.images()
    likelihood = {"name": "gaussian", "scale": 0.1}
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, likelihood=likelihood)
    )
    path = runs.write_config_file(tmp_path / "c.py", config)
    assert cli.main(["train", f"--config={path}", f"--workdir={tmp_path / 'new'}"]) == 2
    assert_one_line(capsys, "got uint8 data")


def test_a_workdir_with_another_config_is_refused(folder, capsys):
    arguments = [f"--config={folder / 'images.py'}", f"--workdir={folder / 'run'}"]
    assert cli.main(["train", *arguments]) == 2
    assert_one_line(capsys, "holds a run with another config")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--split=tset"], "'test'?"),
        (["evaluate", "--num_steps=0"], "num_steps"),
        (["evaluate", "--levels_per_example=0"], "at least 1"),
        (["evaluate", "--params=emma"], "'ema'?"),
        (["evaluate", "--law=sigmod"], "'sigmoid'?"),
        (
            ["evaluate", "--law=adaptive"],
            "law is 'schedule', expected training, schedule or sigmoid",
        ),
        (["sample", "--sampler=ancestrul"], "'ancestral'?"),
        (["sample", "--num=0"], "--num must be at least 1: got 0"),
        (["sample", "--steps=0"], "at least 1"),
        (["sample", "--out=samples.gif"], ".png or .npy"),
    ],
)
def test_bad_requests_of_a_trained_run(arguments, message, folder, capsys):
    assert cli.main([*arguments, f"--workdir={folder / 'run'}"]) == 2
    assert_one_line(capsys, message)


def test_missing_and_damaged_checkpoints(folder, tmp_path, capsys):
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'none'}"]) == 2
    assert_one_line(capsys, "holds no run")
    shutil.copytree(folder / "run", tmp_path / "run")
    for file in (tmp_path / "run/checkpoints").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}"]) == 2
    assert_one_line(capsys, "is damaged")
    shutil.rmtree(tmp_path / "run/checkpoints")
    assert cli.main(["sample", f"--workdir={tmp_path / 'run'}"]) == 2
    assert_one_line(capsys, "holds no checkpoint")


def test_the_module_is_the_console_script(tmp_path):
    command = [sys.executable, "-m", "vdm", "train", "--config=nowhere.py", f"--workdir={tmp_path}"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2], check=False
    )
    assert done.returncode == 2
    assert done.stderr == "vdm: no config file 'nowhere.py'\n"
