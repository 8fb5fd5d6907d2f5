"""vdm compress with a chain of few steps: when one is taken, and what its file needs."""

import re
import shutil

import jax
import numpy as np
import pytest

import runs
from vdm import few_steps
from vdm.run import cli, data, trained
from vdm.run.compression import format as file_format
from vdm.run.config import DataConfig
from vdm.run.workdir import chains

pytestmark = pytest.mark.float32


def keep(run, folder, num_steps, seed=0):
    """Keep a chain of random variances; returns its checksum."""
    levels = few_steps.even(run.model, run.params, num_steps).log_snrs
    values = np.random.default_rng(seed).gamma(1.0, 0.3, (num_steps, *run.shape))
    made = few_steps.Chain(np.asarray(levels), few_steps.Table(values.astype(np.float32)), True)
    about = {"params": run.params, "step": run.step, "kind": run.kind, "num_examples": 9}
    return chains.write(folder, made, "table", **about).checksum


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with chains of 2 and of 4 steps."""
    folder = runs.copy_of("images", tmp_path_factory.mktemp("model") / "run")
    run = trained.load(folder)
    for num_steps in (2, 4):
        keep(run, folder, num_steps)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "x.npy"
    np.save(path, data.load(DataConfig("digits"), "test").take(np.arange(9)).x)
    return path


def run(*words):
    return cli.main([*map(str, words)])


def refused(capsys, code, pattern):
    error = capsys.readouterr().err
    assert code == cli.EXIT_USER_ERROR
    assert re.search(pattern, error.splitlines()[-1]) and "Traceback" not in error, error


@pytest.mark.parametrize(
    ("options", "said", "version", "num_steps"),
    [
        ((), "the chain of 4 steps, variance table", 2, 4),
        (("--steps=2",), "the chain of 2 steps, variance table", 2, 2),
        (("--steps=3",), r"3 even steps: there are chains of 2, 4 steps", 1, 3),
        (("--steps=4", "--no-chain"), "4 even steps$", 1, 4),
        (("--steps=4", "--chain"), "the chain of 4 steps", 2, 4),
    ],
)
def test_a_chain_is_taken_once_there_is_one(
    options, said, version, num_steps, workdir, source, tmp_path, capsys
):
    file, back, where = tmp_path / "x.vdm", tmp_path / "y.npy", f"--workdir={workdir}"
    assert run("compress", source, file, where, "--per_block=5", *options) == 0
    assert re.search(rf"^compressing with {said}", capsys.readouterr().out, re.MULTILINE)
    assert run("decompress", file, back, where) == 0
    np.testing.assert_array_equal(np.load(back), np.load(source))
    header = file_format.survey(file).header
    assert file.read_bytes()[16] == version and header.num_steps == num_steps
    assert header.chain in (b"", *(bytes.fromhex(e.checksum) for e in chains.index(workdir)))
    assert bool(header.chain) == (version == 2)


def test_a_run_without_a_chain_says_how_to_fit_one(source, tmp_path, capsys):
    where = f"--workdir={runs.copy_of('images', tmp_path / 'run')}"
    capsys.readouterr()
    code = run("compress", source, tmp_path / "x.vdm", where, "--steps=4", "--chain")
    refused(capsys, code, "no chain of 4 steps: got none; fit one with `vdm fit-chain")
    assert not (tmp_path / "x.vdm").exists()
    assert run("compress", source, tmp_path / "x.vdm", where, "--steps=2") == 0
    assert "2 even steps: there is no chain (`vdm fit-chain` fits one)" in capsys.readouterr().out


def test_the_chain_of_another_checkpoint_is_not_taken(source, tmp_path, capsys):
    folder = runs.copy_of("images", tmp_path / "run")
    found = trained.load(folder)
    others = jax.tree.map(lambda leaf: leaf + 1, found.params)
    keep(found._replace(params=others), folder, 4)
    words = ("compress", source, tmp_path / "x.vdm", f"--workdir={folder}", "--steps=4")
    capsys.readouterr()
    refused(capsys, run(*words, "--chain"), "belongs to other parameters than these")
    assert not (tmp_path / "x.vdm").exists()
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert re.search("4 even steps: the chains of .* belong to another checkpoint", said)
    assert file_format.survey(tmp_path / "x.vdm").header.chain == b""


def test_a_file_needs_its_own_chain(workdir, source, tmp_path, capsys):
    folder = shutil.copytree(workdir, tmp_path / "run")
    where, file, back = f"--workdir={folder}", tmp_path / "x.vdm", tmp_path / "y.npy"
    assert run("compress", source, file, where, "--steps=4") == 0
    own = file_format.survey(file).header.chain
    # A later chain of as many steps takes its place for new files, and not for old ones.
    later = keep(trained.load(folder), folder, 4, seed=1)
    assert run("compress", source, tmp_path / "z.vdm", where, "--steps=4") == 0
    assert file_format.survey(tmp_path / "z.vdm").header.chain == later != own
    assert run("decompress", file, back, where) == 0
    np.testing.assert_array_equal(np.load(back), np.load(source))
    back.unlink()
    (folder / "chains" / f"{own.hex()}.safetensors").unlink()
    capsys.readouterr()
    code = run("decompress", file, back, where)
    refused(capsys, code, f"with the chain {own.hex()}, which .* got .*{later.hex()}")
    shutil.rmtree(folder / "chains")
    refused(capsys, run("decompress", file, back, where), f"{own.hex()}, .* got no chain")
    assert not back.exists()
