"""Every file of a checkpoint, damaged in every way: what it held is read, or one line of ours."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import runs
from vdm.run import trained
from vdm.run.errors import UserError

pytestmark = pytest.mark.float32

# Every command first reads the run. This one then refuses the ending, which ends a whole one too.
COMMANDS = """
import sys
from vdm.run import cli
for workdir in sys.argv[1:]:
    assert cli.main(["sample", f"--workdir={workdir}", "--out=x.gif"]) == 2
"""
WHOLE = "vdm: samples are written as .png or .npy, or into a new folder: got 'x.gif'"
REASONS = (
    r"cannot be read: .*: (Is a directory|Permission denied)",
    r"is damaged: (the index of its arrays|its numbers) cannot be read",
    r"is damaged: its checksum does not match",
    r"is damaged or belongs to another model: its array [^ ]+ is .*, expected .*",
)
WHAT_TO_DO = (
    "; there is no other that can be read: put back a copy of the run, or train it again into "
    "another --workdir"
)


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


def folder_for_file(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "an object": lambda path: path.write_bytes(b"{}"),
    "gone": pathlib.Path.unlink,
    "a folder": folder_for_file,
}


def files_of(run):
    """All files of the checkpoints."""
    found = (path for path in run.rglob("checkpoints/**/*") if path.is_file())
    return sorted(str(path.relative_to(run)) for path in found)


def check(run, tmp_path, files):
    """Damage each file in every way, and run a command on each copy, all in one process."""
    copies = {}
    for i, file in enumerate(files):
        for how, damage in DAMAGES.items():
            copy = shutil.copytree(run, tmp_path / f"{i}_{how.replace(' ', '_')}")
            damage(copy / file)
            copies[copy] = f"{file}, {how}"
    words = [sys.executable, "-c", COMMANDS, *map(str, copies)]
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    lines = done.stderr.splitlines()
    assert len(lines) == len(copies) and done.returncode == 0, done.stderr
    refused = set()
    for (copy, what), line in zip(copies.items(), lines, strict=True):
        if line != WHOLE:
            ours = rf"vdm: the checkpoint {copy}/checkpoints/\d ({'|'.join(REASONS)})"
            assert re.fullmatch(ours + re.escape(WHAT_TO_DO), line), (what, line)
            refused.add(what.split(",")[0][len("checkpoints/4/") :])
    assert {"state/_METADATA", "state/manifest.ocdbt"} <= refused
    assert any(file.startswith("state/d/") for file in refused)


def test_a_damaged_file_is_one_line_of_ours(tmp_path):
    run = runs.copy_of("points", tmp_path / "run")
    read = re.compile(r".*/state/(_METADATA|manifest\.ocdbt|d/.*|array_metadatas/.*)")
    check(run, tmp_path, filter(read.fullmatch, files_of(run)))


@pytest.mark.long
def test_every_damaged_file_is_one_line_of_ours(tmp_path):
    run = runs.copy_of("images", tmp_path / "run")
    check(run, tmp_path, files_of(run))


def test_the_array_that_another_model_has_otherwise_is_named(tmp_path):
    run = runs.copy_of("points", tmp_path / "run")
    text = (run / "config.json").read_text()
    for change, message in (
        ('"width": 24', r"block_0/\w+/\w+ is float32 \[16, 16\], expected float32 \[24, 24\]"),
        ('"width": 16, "time_dim": 1', "unknown argument"),
        ('"width": 16, "num_classes": 3', "is not there, expected float32"),
    ):
        (run / "config.json").write_text(text.replace('"width": 16', change))
        with pytest.raises(UserError, match=message):
            trained.load(run)
