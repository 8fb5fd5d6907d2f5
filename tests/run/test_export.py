"""A run as one file and as programs: the same numbers without a workdir, and with JAX alone."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jaxtyping
import numpy as np
import pytest
from safetensors.numpy import load_file

import runs
import vdm.run
from vdm.run import cli, data, export, train
from vdm.run.errors import UserError
from vdm.run.workdir import exported

# The annotations do not know an open number of examples.
pytestmark = [pytest.mark.float32, pytest.mark.usefixtures("unchecked")]

# What a receiver runs: JAX and NumPy alone.
ALONE = """
import sys
import jax, numpy as np
sys.modules["vdm"] = sys.modules["flax"] = None  # neither may be imported
folder, out = sys.argv[1:]
def program(name):
    return jax.export.deserialize(open(f"{folder}/{name}.jax_export", "rb").read())
given = np.load(f"{folder}/../given.npz")
index = np.arange(5, dtype=np.int32)
cond = (given["cond"],) if "cond" in given else ()
np.savez(
    out,
    denoiser=program("denoiser").call(given["z"], given["log_snr"], *cond),
    sample=program("sample").call(np.uint32(3), index, *cond),
    score=program("score").call(np.uint32(3), index, given["x"], *cond),
)
"""


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A class-conditional run on images, and what was exported of it."""
    folder = tmp_path_factory.mktemp("classes")
    workdir = runs.copy_of("classes", folder / "run")
    jaxtyping.config.update("jaxtyping_disable", True)
    assert cli.main(["export", f"--workdir={workdir}", str(folder / "out")]) == 0
    jaxtyping.config.update("jaxtyping_disable", False)
    return workdir, folder / "out"


def test_programs_give_the_same_numbers_with_jax_alone(classes, tmp_path):
    workdir, out = classes
    run = vdm.run.load(workdir)
    rng = np.random.default_rng(0)
    given = {
        "z": rng.normal(size=(5, *run.shape)).astype(np.float32),
        "log_snr": np.linspace(-5, 7, 5, dtype=np.float32),
        "x": rng.integers(0, 17, (5, *run.shape)).astype(np.int32),
        "cond": np.arange(5, dtype=np.int32),
    }
    np.savez(out.parent / "given.npz", **given)
    words = [sys.executable, "-c", ALONE, str(out), str(tmp_path / "found.npz")]
    subprocess.run(words, check=True, cwd=tmp_path)
    found = np.load(tmp_path / "found.npz")
    denoised = run.model.denoiser(run.params, given["cond"])(
        *map(jax.numpy.asarray, (given["z"], given["log_snr"]))
    )
    np.testing.assert_allclose(found["denoiser"], denoised, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["sample"], run.sample(5, given["cond"], key=3))
    scores = run.score(given["x"], given["cond"], key=3)
    np.testing.assert_allclose(found["score"].mean(1), scores.terms, rtol=1e-4, atol=1e-5)


def test_programs_are_for_every_platform_and_any_number(classes):
    for name in ("denoiser", "sample", "score"):
        program = jax.export.deserialize((classes[1] / f"{name}.jax_export").read_bytes())
        assert set(program.platforms) == {"cpu", "cuda", "tpu"}
        assert str(program.out_avals[0].shape[0]) == "b"


def test_an_exported_run_is_a_run(classes, tmp_path, monkeypatch, capsys):
    workdir, out = classes
    alone = tmp_path / "model.safetensors"
    assert cli.main(["export", f"--workdir={workdir}", str(alone)]) == 0
    expected = vdm.run.load(workdir)
    for place in (out, alone, str(alone)):
        run = vdm.run.load(place)
        assert (run.shape, run.step, run.kind) == (expected.shape, expected.step, "ema")
        for one, other in zip(*map(jax.tree.leaves, (run.params, expected.params)), strict=True):
            np.testing.assert_array_equal(one, other)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sample", f"--workdir={alone}", "--num=2"]) == 0
    assert (tmp_path / "samples.png").is_file()
    assert cli.main(["report", f"--workdir={out}", "--num=0", f"--out={tmp_path / 'r.html'}"]) == 0


def test_a_code_is_the_same(tmp_path):
    workdir, alone = runs.copy_of("images", tmp_path / "run"), tmp_path / "model.safetensors"
    assert cli.main(["export", f"--workdir={workdir}", str(alone)]) == 0
    np.save(tmp_path / "x.npy", vdm.run.load(workdir).sample(2, key=0))
    for place, code in ((workdir, "a.vdm"), (alone, "b.vdm")):
        words = [str(tmp_path / "x.npy"), str(tmp_path / code), f"--workdir={place}", "--steps=3"]
        assert cli.main(["compress", *words]) == 0
    assert (tmp_path / "a.vdm").read_bytes() == (tmp_path / "b.vdm").read_bytes()


def test_what_is_in_the_file_is_read_by_others(classes):
    arrays = load_file(classes[1] / "model.safetensors")
    kernel = vdm.run.load(classes[0]).params["network"]
    names = {f"params/network/{name}" for name in flat(kernel)}
    assert names <= set(arrays)
    name, value = next(iter(flat(kernel).items()))
    np.testing.assert_array_equal(arrays[f"params/network/{name}"], value)


def flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for name, part in tree.items() for k, v in flat(part, f"{prefix}{name}/").items()}


def test_the_path_to_the_data_is_seen_from_the_new_folder(tmp_path, monkeypatch):
    x = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    (tmp_path / "a/b").mkdir(parents=True)
    np.save(tmp_path / "a/x.npy", x)
    monkeypatch.chdir(tmp_path / "a")
    runs.copy_of("points", pathlib.Path("run"))
    kept = json.loads(pathlib.Path("run/data.json").read_text())
    pathlib.Path("run/data.json").write_text(json.dumps({**kept, "path": "../x.npy"}))
    words = ["export", "--workdir=run", "b/out", "--programs=none"]
    assert cli.main(words) == 0
    assert data.kept(pathlib.Path("b/out")).path == "../../x.npy"
    assert not list(pathlib.Path("b/out").glob("*.jax_export"))


def test_training_does_not_resume_from_what_was_exported_but_begins_with_it(
    classes, tmp_path, capsys
):
    out = shutil.copytree(classes[1], tmp_path / "out")
    capsys.readouterr()
    assert cli.main(["train", f"--workdir={out}"]) == 2
    error = capsys.readouterr().err
    assert f"--init_from={out}" in error and error.count("\n") == 1
    config = runs.images(num_classes=10, num_steps=1, init_from=str(out))
    state = train.train(config, tmp_path / "new")
    assert int(state.step) == 1
    assert "begins with the averaged parameters of" in capsys.readouterr().err
    kept = runs.images(num_classes=10, num_steps=1, init_from=str(out), init_optimizer="kept")
    with pytest.raises(UserError, match="is an exported run, which has none"):
        train.train(kept, tmp_path / "newer")


@pytest.mark.parametrize("where", [0.0, 0.3, 0.9, "cut", "empty", "other", "renamed"])
def test_a_damaged_file_is_named(classes, tmp_path, where):
    path = tmp_path / "model.safetensors"
    content = bytearray((classes[1] / "model.safetensors").read_bytes())
    if where == "renamed":
        from safetensors.numpy import save_file

        save_file({"x": np.zeros(2)}, path, {"format": "pt"})
    else:
        if isinstance(where, float):
            content[int(where * len(content))] ^= 1
        content = {"cut": content[:-9], "empty": b"", "other": b"PK" * 50}.get(where, content)
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is (damaged|no exported)") as error:
        exported.read(path)
    assert "\n" not in str(error.value)


def test_what_cannot_be_exported_is_one_line(classes, tmp_path, capsys):
    workdir, out = classes
    for words, message in (
        ([str(tmp_path / "x.pt")], "into a .safetensors file or a new folder: got 'x.pt'"),
        ([str(out)], "exists already"),
        ([str(tmp_path / "x"), "--programs=scores"], "unknown --programs 'scores'"),
        ([str(tmp_path / "x"), "--params=emma"], "unknown params 'emma'"),
    ):
        capsys.readouterr()
        assert cli.main(["export", f"--workdir={workdir}", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="holds the parameters 'ema' only: got 'raw'"):
        vdm.run.load(out, "raw")


def test_the_packaged_run_is_there_at_once(tmp_path, capsys):
    workdir = tmp_path / "demo"
    assert cli.main(["demo", f"--workdir={workdir}"]) == 0
    size = sum(path.stat().st_size for path in workdir.iterdir())
    assert size < 1_000_000
    run = vdm.run.load(workdir)
    assert run.shape == (8, 8, 1) and run.step == 4000
    # Its record is that of its parameters: the first digits are measured again.
    record = np.load(workdir / "evaluation_test.npz")
    some = data.load(run.config.data, "test").x[:4]
    scores = run.score(some, key=0, batch_size=64)
    np.testing.assert_allclose(scores.bpd, record["total_inf"][:4], rtol=1e-4)
    capsys.readouterr()
    assert cli.main(["demo", f"--workdir={workdir}"]) == 2
    assert "exists already: expected a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("num_classes", [2, 20])
def test_programs_of_an_augmented_run_take_its_classes_alone(num_classes, tmp_path):
    """Its network's condition is class × flags + flag: 2 flags, without classes and with 10."""
    made = runs.images(num_classes=num_classes)
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, augment="vdm"))
    train.train(made, tmp_path)
    run = vdm.run.load(tmp_path)
    # Far from its zeros, so that the condition counts.
    noise = jax.tree.map(lambda p: p + 0.1 * np.cos(np.arange(p.size)).reshape(p.shape), run.params)
    run = run._replace(params=jax.tree.map(lambda a, b: a.astype(b.dtype), noise, run.params))
    x = np.random.default_rng(0).integers(0, 17, (3, *run.shape)).astype(np.int32)
    classes = (np.array([1, 5, 9], np.int32),) if num_classes == 20 else ()
    index = np.arange(3, dtype=np.int32)

    def program(name):
        return jax.export.deserialize(bytearray(export.program(run, name))).call

    found = program("score")(np.uint32(3), index, x, *classes)
    expected = run.score(x, *classes, key=3)
    np.testing.assert_allclose(found.mean(1), expected.terms, rtol=1e-4, atol=1e-5)
    drawn = program("sample")(np.uint32(3), index, *classes)
    np.testing.assert_array_equal(drawn, run.sample(3, *classes, key=3))
    z, log_snr = np.zeros((3, *run.shape), np.float32), np.ones(3, np.float32)
    cond = 2 * classes[0] if classes else np.zeros(3, np.int32)
    expected = run.model.denoiser(run.params, cond)(*map(jax.numpy.asarray, (z, log_snr)))
    denoised = program("denoiser")(z, log_snr, *classes)
    np.testing.assert_allclose(denoised, expected, rtol=1e-4, atol=1e-5)


def test_the_program_scores_under_the_law_of_evaluation(tmp_path):
    run = vdm.run.load(runs.copy_of("points", tmp_path))
    own = dataclasses.replace(run.config.evaluate, law="sigmoid")
    run = run._replace(config=dataclasses.replace(run.config, evaluate=own))
    x, index = np.ones((4, 2), np.float32), np.arange(4, dtype=np.int32)
    program = jax.export.deserialize(bytearray(export.program(run, "score"))).call
    found = program(np.uint32(3), index, x).mean(1)
    np.testing.assert_allclose(found, run.score(x, key=3).terms, rtol=1e-4, atol=1e-5)


def test_a_file_alone_does_not_know_where_the_data_were(tmp_path):
    workdir = runs.copy_of("points", tmp_path / "run")
    kept = json.loads((workdir / "data.json").read_text())
    (workdir / "data.json").write_text(json.dumps({**kept, "path": "../x.npy"}))
    alone = tmp_path / "a/b/model.safetensors"
    assert cli.main(["export", f"--workdir={workdir}", str(alone)]) == 0
    assert exported.read(alone).data.path is None
