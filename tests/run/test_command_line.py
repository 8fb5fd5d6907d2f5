"""The command line itself: its outline, and one line for every mistake in its words."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import runs
from vdm.run import cli, sample
from vdm.run.outline import COMMANDS

pytestmark = pytest.mark.float32


def test_the_outline_needs_no_jax():
    code = (
        "import sys; sys.argv = ['vdm', '--help']\n"
        "from vdm.run import start\n"
        "try:\n    start.main()\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in ran.stdout and text[:30] in ran.stdout for name, text in COMMANDS.items())
    assert set(COMMANDS) == set(cli.RUN)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["foo"], "unknown command 'foo': expected one of"),
        (["trian"], "Did you mean 'train'?"),
        ([], "the following arguments are required: COMMAND"),
        (["evaluate"], "required: --workdir; see `vdm evaluate --help`"),
        (["sample", "--num=x", "--workdir=y"], "argument --num: invalid int value: 'x'"),
        (["sample", "--workdir=y", "--seed=5e3"], "argument --seed: invalid int value"),
        (["train", "--config=c.py", "--workdir"], "argument --workdir: expected one argument"),
        (["report", "x" * 300], "File name too long"),
        (["compress", "y" * 300, "out.vdm", "--workdir=run"], "File name too long"),
        (["evaluate", "--workdir", "z" * 300], "File name too long"),
    ],
)
def test_a_mistake_is_one_line(words, message, capsys):
    assert cli.main(words) == cli.EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("vdm: ") and message in error and error.count("\n") == 1


def test_a_config_file_that_leaves_python_is_an_error(tmp_path, capsys):
    for code in ("0", "'stop'"):
        (tmp_path / "c.py").write_text(f"import sys\nsys.exit({code})\n")
        words = ["train", f"--config={tmp_path / 'c.py'}", f"--workdir={tmp_path / 'run'}"]
        assert cli.main(words) == cli.EXIT_USER_ERROR
        assert "SystemExit" in capsys.readouterr().err


def test_a_pipe_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "x.npy")
    config = runs.points()
    file = runs.write_config_file(tmp_path / "c.py", config)
    words = ["train", f"--config={file}", f"--workdir={tmp_path / 'run'}"]
    words += ["--config.data.name=arrays", f"--config.data.path={tmp_path / 'x.npy'}"]
    assert cli.main(words) == cli.EXIT_USER_ERROR
    assert "x.npy is not a file" in capsys.readouterr().err


@pytest.mark.parametrize("end", ["log_snr_max=1e30", "log_snr_min=-1e30", "log_snr_max=81.0"])
def test_an_end_that_float32_does_not_hold_is_refused_and_leaves_nothing(end, tmp_path, capsys):
    file = runs.write_config_file(tmp_path / "c.py", runs.points())
    run = tmp_path / "run"
    words = ["train", f"--config={file}", f"--workdir={run}", f"--config.model.schedule.{end}"]
    assert cli.main(words) == cli.EXIT_USER_ERROR
    assert "end points must be between -80 and 80" in capsys.readouterr().err
    assert not run.exists()


def test_samples_that_are_not_finite_are_not_written(tmp_path, capsys, monkeypatch):
    def draw(*args, **settings):
        return np.full(settings["shape"], -1, np.int32)

    file = runs.write_config_file(tmp_path / "c.py", runs.images())
    assert cli.main(["train", f"--config={file}", f"--workdir={tmp_path / 'run'}"]) == 0
    monkeypatch.setattr(sample, "_draw", draw)
    capsys.readouterr()
    assert cli.main(["sample", f"--workdir={tmp_path / 'run'}", "--num=4"]) == 2
    assert "samples of step 3 are not finite: ancestral, 3 steps" in capsys.readouterr().err
    assert not (tmp_path / "run/samples.png").exists()


def test_samples_as_single_images(tmp_path, capsys):
    run, out = runs.copy_of("images", tmp_path / "run"), tmp_path / "out/samples"
    command = ["sample", f"--workdir={run}", "--num=5", f"--out={out}"]
    assert cli.main(command) == 0
    assert cli.main([*command[:-1], f"--out={tmp_path / 'x.npy'}"]) == 0
    files = sorted(out.iterdir())
    assert [file.name for file in files] == [f"{i:06}.png" for i in range(5)]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    x = np.load(tmp_path / "x.npy")[..., 0]
    np.testing.assert_array_equal(pixels, np.round(x * 255 / 16))
    capsys.readouterr()
    assert cli.main(command) == cli.EXIT_USER_ERROR
    assert "exists already: expected a new folder" in capsys.readouterr().err


def test_what_no_memory_holds_is_one_line(monkeypatch, capsys):
    def without_end(options, rest):
        np.zeros((2**45, 2**10))

    monkeypatch.setitem(cli.RUN, "report", without_end)
    assert cli.main(["report", "run"]) == cli.EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("vdm: not enough memory: ") and error.count("\n") == 1


def test_a_name_of_two_lines_is_said_in_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "--workdir=a\n\x1b[31mλ"]) == cli.EXIT_USER_ERROR
    assert capsys.readouterr().err.startswith(r"vdm: a\n\x1b[31mλ holds no run")
