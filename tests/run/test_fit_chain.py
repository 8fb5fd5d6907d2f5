"""Chains of few steps by command: fitted, kept beside the model they belong to, sampled with."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import runs
import vdm.run
from vdm import few_steps
from vdm.run import cli, data, fit_chain, sample, trained
from vdm.run.config import FewStepsConfig
from vdm.run.errors import UserError
from vdm.run.workdir import chains

pytestmark = pytest.mark.float32
QUICK = ("--num_levels=21", "--num_examples=64", "--batch_size=64", "--head_steps=4")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A class-conditional run of images with chains of 2 and 5 steps with tables."""
    workdir = runs.copy_of("classes", tmp_path_factory.mktemp("fitted") / "run")
    words = ["fit-chain", f"--workdir={workdir}", "--steps=2,5", "--variance=table", *QUICK]
    assert cli.main(words) == 0
    return workdir


def same(one, other):
    """Whether two chains are equal, number by number."""
    arrays = [np.asarray(leaf) for leaf in (one.log_snrs, *leaves(one))]
    return one.clip_denoised == other.clip_denoised and all(
        np.array_equal(a, np.asarray(b))
        for a, b in zip(arrays, (other.log_snrs, *leaves(other)), strict=True)
    )


def leaves(chain):
    return jax.tree.leaves(chain.variance)


def test_a_fit_multiplies_float32_in_full(tmp_path, monkeypatch):
    """As the codec does that takes the chain: no other network is fitted to."""

    class Asked(Exception):
        pass

    def fit(*given, **more):
        raise Asked(jax.config.jax_default_matmul_precision)

    monkeypatch.setattr(few_steps, "fit", fit)
    run = trained.load(runs.copy_of("classes", tmp_path / "run"))
    with pytest.raises(Asked, match=r"^highest$"):
        fit_chain.fit(run, FewStepsConfig(), tmp_path)


def test_what_is_kept_is_what_the_function_makes(fitted):
    # On as many devices, or the last digits are others.
    run = trained.load(fitted, devices=trained.one_device())
    train = data.load(run.config.data, "train")
    part = train.take(np.linspace(0, len(train) - 1, 64).round().astype(int))
    made = few_steps.fit(
        run.model,
        run.params,
        part.x,
        part.labels.astype(np.int32),
        variance="table",
        num_levels=21,
        batch_size=64,
    )
    for num_steps in (2, 5):
        kept = chains.find(fitted, run.params, num_steps)
        assert same(kept.chain, few_steps.place(made, num_steps))
        assert (kept.variance, kept.num_examples) == ("table", 64)
        assert kept.chain.clip_denoised and kept.chain.num_steps == num_steps
        few_steps.check(kept.chain, run.shape)
        assert same(chains.by_checksum(fitted, kept.checksum).chain, kept.chain)
    assert chains.steps(fitted, run.params) == (2, 5)


def test_test_images_have_no_part_in_it(fitted, tmp_path, monkeypatch):
    read = data.load

    def train_only(config, split):
        assert split == "train"
        return read(config, split)

    monkeypatch.setattr(data, "load", train_only)
    workdir = shutil.copytree(fitted, tmp_path / "run")
    settings = FewStepsConfig(num_steps="3", variance="level", num_levels=6, num_examples=32)
    ((name, text),) = fit_chain.fit(vdm.run.load(workdir), settings, workdir)
    assert name == "3 steps, variance level" and "bits per dimension" in text


def test_a_head_is_read_back_and_an_earlier_chain_stays(fitted, tmp_path):
    workdir = shutil.copytree(fitted, tmp_path / "run")
    run = vdm.run.load(workdir)
    before = chains.find(workdir, run.params, 5)
    assert cli.main(["fit-chain", f"--workdir={workdir}", "--steps=5", *QUICK]) == 0
    after = chains.find(workdir, run.params, 5)
    assert after.variance == "head" and after.checksum != before.checksum
    assert chains.steps(workdir, run.params) == (2, 5)
    assert same(chains.by_checksum(workdir, before.checksum).chain, before.chain)
    z = jax.random.normal(jax.random.key(0), (3, *run.shape))
    v = after.chain.v(z, 0.5 * z, jax.numpy.asarray(1.0))
    assert v.shape == z.shape and np.all(np.isfinite(v)) and np.all(v > 0) and np.std(v) > 0


@pytest.mark.parametrize("variance", ["none", "channel"])
def test_every_variance_is_kept(fitted, tmp_path, variance):
    workdir = shutil.copytree(fitted, tmp_path / "run")
    words = ["fit-chain", f"--workdir={workdir}", "--steps=3", f"--variance={variance}", *QUICK]
    assert cli.main([*words, "--no-clip_denoised"]) == 0
    kept = chains.find(workdir, vdm.run.load(workdir).params, 3)
    assert kept.variance == variance and not kept.chain.clip_denoised
    assert (kept.chain.variance is None) == (variance == "none")


def test_a_chain_of_other_parameters_is_refused(fitted, capsys):
    raw = vdm.run.load(fitted, "raw")
    assert chains.steps(fitted, raw.params) == ()
    with pytest.raises(UserError, match=r"belongs to other parameters .* \(ema\); fit one with"):
        chains.find(fitted, raw.params, 5)
    run = vdm.run.load(fitted)
    with pytest.raises(UserError, match="no chain of 7 steps: got of 2, 5 steps; fit one with"):
        chains.find(fitted, run.params, 7)
    with pytest.raises(UserError, match="no chain 0011"):
        chains.by_checksum(fitted, bytes.fromhex("0011"))


def test_samples_of_a_chain(fitted, tmp_path, capsys):
    out = tmp_path / "x.npy"
    words = ["sample", f"--workdir={fitted}", "--num=3", "--seed=4", f"--out={out}", "--chain"]
    assert cli.main([*words, "--steps=5"]) == 0
    run = vdm.run.load(fitted)
    chain = chains.find(fitted, run.params, 5).chain
    np.testing.assert_array_equal(np.load(out), run.sample(3, key=4, chain=chain))
    assert not np.array_equal(np.load(out), run.sample(3, key=4, num_steps=5))
    assert "5 steps of a chain" in capsys.readouterr().err
    assert cli.main([*words, "--steps=5", "--sampler=ddim"]) == 2
    assert "got sampler='ddim', expected 'ancestral'" in capsys.readouterr().err
    assert cli.main([*words, "--steps=5", "--grid=edm"]) == 2
    assert "got grid='edm', expected 'time'" in capsys.readouterr().err
    assert cli.main(words) == 2
    assert "no chain of 3 steps: got of 2, 5 steps" in capsys.readouterr().err
    with pytest.raises(UserError, match="fitted to x̂ without guidance: got guidance=2"):
        settings = dataclasses.replace(run.config.sample, num_steps=5, guidance=2.0)
        sample.check_chain(settings)
    with pytest.raises(UserError, match="a chain has steps of its own: got num_steps"):
        run.sample(3, key=4, num_steps=5, chain=chain)


def test_an_exported_folder_has_the_chains(fitted, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["export", f"--workdir={fitted}", str(out), "--programs=none"]) == 0
    run = vdm.run.load(out)
    kept = chains.find(fitted, run.params, 2)
    assert same(chains.find(out, run.params, 2).chain, kept.chain)


def test_an_exported_file_has_no_chains_and_says_so(fitted, tmp_path, capsys):
    out = tmp_path / "alone.safetensors"
    assert cli.main(["export", f"--workdir={fitted}", str(out)]) == 0
    assert "chains of" in capsys.readouterr().err
    bare = runs.copy_of("classes", tmp_path / "bare")
    assert cli.main(["export", f"--workdir={bare}", str(out)]) == 0
    assert "chains" not in capsys.readouterr().err


@pytest.mark.parametrize("where", [40, 0.5, -3])
def test_a_damaged_chain_is_named(fitted, tmp_path, where):
    workdir = shutil.copytree(fitted, tmp_path / "run")
    run = vdm.run.load(workdir)
    path = chains._file(workdir, chains.find(workdir, run.params, 5).checksum.hex())
    content = bytearray(path.read_bytes())
    place = int(where * len(content)) if isinstance(where, float) else where
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        chains.find(workdir, run.params, 5)


def test_a_file_of_another_name_is_no_other_chain(fitted, tmp_path):
    workdir = shutil.copytree(fitted, tmp_path / "run")
    params = vdm.run.load(workdir).params
    two, five = (
        chains._file(workdir, chains.find(workdir, params, n).checksum.hex()) for n in (2, 5)
    )
    shutil.copyfile(two, five)
    with pytest.raises(UserError, match="holds another chain than its name says"):
        chains.find(workdir, params, 5)


def test_a_damaged_index_is_named(fitted, tmp_path):
    workdir = shutil.copytree(fitted, tmp_path / "run")
    index = workdir / chains.FOLDER / chains.INDEX_FILE
    found = json.loads(index.read_text())
    found["chains"][0]["num_steps"] = "two"
    index.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"chains\[0\]\.num_steps"):
        chains.find(workdir, vdm.run.load(workdir).params, 2)
