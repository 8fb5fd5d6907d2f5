"""`vdm score`: a row for each example of a file, its rank among the run's data, and refusals."""

import csv
import dataclasses
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import runs
import vdm.run
from vdm.run import cli, data, evaluate, train
from vdm.run.config import DataConfig
from vdm.run.data import whole
from vdm.run.evaluation import files as evaluation_files
from vdm.run.scoring import ranks, scores

pytestmark = pytest.mark.float32


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """The workdir of a run on points that has been evaluated."""
    workdir = runs.copy_of("points", tmp_path_factory.mktemp("points"))
    evaluate = ["evaluate", f"--workdir={workdir}", "--batch_size=8000"]
    assert cli.main([*evaluate, "--levels_per_example=2"]) == 0
    return workdir


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return runs.copy_of("classes", tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The workdir of a run on grey images of two classes, and the folder of these images."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(24):
        file = folder / "data" / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 6), np.uint8)).save(file)
    config = runs.images(num_classes=2)
    config.model.likelihood["levels"] = 256
    where = DataConfig("images", path=str(folder / "data"))
    train.train(dataclasses.replace(config, data=where), folder / "run")
    return folder / "run", folder / "data"


def scored(path):
    """The columns of a CSV file, numbers where they are."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    columns = {name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}
    return {
        name: values if name == "name" else np.array([float(v or "nan") for v in values])
        for name, values in columns.items()
    }


def test_a_file_of_the_test_split_has_its_evaluation_and_ranks(points, tmp_path, capsys):
    config = vdm.run.load(points).config
    test = data.load(config.data, "test").x
    np.save(tmp_path / "x.npy", test[:300])
    out = tmp_path / "scores.csv"
    words = ["score", str(tmp_path / "x.npy"), f"--workdir={points}", f"--out={out}"]
    assert cli.main(words) == 0
    found, kept = scored(out), np.load(points / "evaluation_test.npz")
    assert list(found) == [
        *("index", "bpd", "error", "prior", "reconstruction", "diffusion"),
        *("rank_test", "rank_train"),
    ]
    np.testing.assert_array_equal(found["index"], np.arange(300))
    np.testing.assert_allclose(found["bpd"], kept["total_inf"][:300], rtol=1e-6)
    np.testing.assert_allclose(found["error"], kept["error_inf"][:300], rtol=1e-5)
    parts = [found[name] for name in ("prior", "reconstruction", "diffusion")]
    np.testing.assert_allclose(np.sum(parts, 0), found["bpd"], rtol=1e-12)
    # By counting: the share of the split with at least as many bits.
    for split in ("test", "train"):
        bits = np.load(points / f"evaluation_{split}.npz")["total_inf"]
        share = [(bits >= one).mean() for one in found["bpd"]]
        # The same example may be a rounding error above itself.
        np.testing.assert_allclose(found[f"rank_{split}"], share, atol=1.01 / len(bits))
    said = capsys.readouterr()
    mean, sem = found["bpd"].mean(), found["bpd"].std(ddof=1) / np.sqrt(300)
    assert f"300 examples: {mean:.4f} ± {sem:.4f} bits per dimension" in said.out
    order = np.argsort(found["bpd"])
    shown = [line.split()[1] for line in said.out.splitlines() if line.startswith("│")]
    assert shown == [str(i) for i in order[:5]] + ["..."] + [str(i) for i in order[-5:]]
    count = (found["rank_test"] < 0.05).sum()
    assert f"{count} of the 300 have a rank below 0.05" in said.out
    assert "no rank" not in said.err


def test_the_test_split_of_a_set_may_be_called_validation(tmp_path, monkeypatch):
    """As that of ImageNet in tensorflow-datasets is."""
    workdir = runs.copy_of("points", tmp_path / "run")
    run = vdm.run.load(workdir)
    load = evaluate.dataset_of

    def renamed(run, split):
        found = load(run, split)
        return found if split == "train" else found.subset(np.arange(30)).named("validation")

    monkeypatch.setattr(evaluate, "dataset_of", renamed)
    result = evaluate.measure(run, "test", run.config.evaluate, workdir).headline
    assert result.origin.split == "validation"
    assert evaluation_files.of_examples(workdir, result).shape == (30,)
    np.save(tmp_path / "x.npy", renamed(run, "test").x)
    assert cli.main(["score", str(tmp_path / "x.npy"), f"--workdir={workdir}"]) == 0
    found = scored(workdir / "scores.csv")
    assert "rank_test" in found and found["rank_test"].min() <= 1.01 / 30


def test_a_rank_is_the_share_with_at_least_as_many_bits():
    ranks_of = ranks.rank(np.array([0.5, 1.0, 2.0, 2.5, 3.0, 4.0]), np.array([1.0, 2.0, 2.0, 3.0]))
    np.testing.assert_array_equal(ranks_of, [1.0, 1.0, 0.75, 0.25, 0.25, 0.0])


def test_arrays_of_the_same_names(points, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(7, 2)))
    base = ["score", str(tmp_path / "x.npz"), f"--workdir={points}", "--seed=3"]
    for ending in ("csv", "npz"):
        assert cli.main([*base, f"--out={tmp_path / 'out'}.{ending}"]) == 0
    rows, arrays = scored(tmp_path / "out.csv"), np.load(tmp_path / "out.npz")
    assert list(arrays) == list(rows)
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], rows[name])
    x = np.load(tmp_path / "x.npz")["x"]
    np.testing.assert_array_equal(vdm.run.load(points).score(x, key=3).bpd, rows["bpd"])
    raw = vdm.run.load(points, "raw").score(x, key=3, levels_per_example=9).bpd
    more = ["--params=raw", "--levels_per_example=9", "--batch_size=5"]
    assert cli.main([*base, *more, f"--out={tmp_path / 'raw.csv'}"]) == 0
    np.testing.assert_allclose(scored(tmp_path / "raw.csv")["bpd"], raw, rtol=1e-6)


def test_without_numbers_to_compare_with_their_command_is_named(points, classes, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    words = ["score", str(tmp_path / "x.npy"), f"--workdir={points}"]
    assert cli.main([*words, "--params=raw"]) == 0  # other parameters than those evaluated
    said = capsys.readouterr().err
    for split in ("test", "train"):
        command = f"vdm evaluate --workdir={points} --params=raw"
        assert f"no ranks among {split}: `{command}` keeps its numbers" in said
    assert list(scored(points / "scores.csv"))[-1] == "diffusion"
    assert cli.main([*words, "--bound=ode", "--ode_steps=3", "--levels_per_example=2"]) == 2
    assert "--levels_per_example needs --bound=vlb" in capsys.readouterr().err
    assert cli.main([*words, "--bound=ode", "--ode_steps=3", "--num_probes=2"]) == 0
    said = capsys.readouterr().err
    assert (
        f"`vdm evaluate --workdir={points} --split=train --bound=ode --ode_steps=3` keeps" in said
    )
    found = scored(points / "scores.csv")
    assert list(found) == ["index", "bpd", "error"] and found["error"].max() > 0
    assert cli.main([*words, "--levels_per_example=1"]) == 0
    assert np.isnan(scored(points / "scores.csv")["error"]).all()


def test_numbers_of_another_precision_are_not_compared_with(points, tmp_path, capsys):
    np.save(tmp_path / "x.npy", data.load(vdm.run.load(points).config.data, "test").x[:3])
    words = ["score", str(tmp_path / "x.npy"), f"--workdir={points}", f"--out={tmp_path}/x.csv"]
    assert cli.main(words) == 0
    assert "precision of float32: highest" in capsys.readouterr().out
    assert "rank_test" in scored(tmp_path / "x.csv")
    assert cli.main([*words, "--precision=default"]) == 0
    said = capsys.readouterr()
    assert "precision of float32: default" in said.out
    assert f"`vdm evaluate --workdir={points} --precision=default` keeps its numbers" in said.err
    assert "rank_test" not in scored(tmp_path / "x.csv")


def test_ranks_among_the_ode_s_numbers(tmp_path, monkeypatch, capsys):
    workdir = runs.copy_of("points", tmp_path / "run")
    load = data.load
    monkeypatch.setattr(data, "load", lambda *given: load(*given).subset(np.arange(50)))
    ode = ["--bound=ode", "--ode_steps=3", f"--workdir={workdir}"]
    assert cli.main(["evaluate", *ode]) == 0
    np.save(tmp_path / "x.npy", load(vdm.run.load(workdir).config.data, "test").x[:50])
    assert cli.main(["score", str(tmp_path / "x.npy"), *ode]) == 0
    found = scored(workdir / "scores.csv")
    kept = np.load(workdir / "evaluation_test.npz")["ode_1"]
    np.testing.assert_allclose(found["bpd"], kept, rtol=1e-5)
    np.testing.assert_allclose(np.sort(found["rank_test"]), np.arange(1, 51) / 50, atol=0.021)
    assert "rank_train" not in found
    # Another solver has another error: its numbers are not to be compared with.
    capsys.readouterr()
    for given in ("--ode_steps=4", "--tolerance=0.1"):
        words = ["score", str(tmp_path / "x.npy"), f"--workdir={workdir}", "--bound=ode", given]
        assert cli.main(words) == 0
        assert "rank_test" not in scored(workdir / "scores.csv")
        command = f"vdm evaluate --workdir={workdir} --bound=ode {given}"
        assert f"no ranks among test: `{command}`" in capsys.readouterr().err


def test_classes_come_from_the_file(classes, tmp_path, capsys):
    rng = np.random.default_rng(0)
    x, labels = rng.integers(0, 17, (5, 8, 8, 1), np.uint8), np.array([0, 3, 9, 1, 1])
    np.savez(tmp_path / "x.npz", x=x, labels=labels)
    words = [f"--workdir={classes}", f"--out={tmp_path / 'out.csv'}"]
    assert cli.main(["score", str(tmp_path / "x.npz"), *words]) == 0
    expected = vdm.run.load(classes).score(x, labels, key=0).bpd
    np.testing.assert_array_equal(scored(tmp_path / "out.csv")["bpd"], expected)
    np.save(tmp_path / "x.npy", x)
    assert cli.main(["score", str(tmp_path / "x.npy"), *words]) == 2
    assert "expected --label, a class from 0 to 9" in capsys.readouterr().err


def test_images_are_named(images, tmp_path, capsys):
    run, folder = images
    out = f"--out={tmp_path / 'out.csv'}"
    assert cli.main(["score", str(folder), f"--workdir={run}", out]) == 0
    found = scored(tmp_path / "out.csv")
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.png"))
    assert found["name"] == files and len(files) == 24  # none is held out
    x = np.stack([np.asarray(Image.open(folder / file))[..., None] for file in files])
    labels = [int(file.startswith("b")) for file in files]
    expected = vdm.run.load(run).score(x, labels, key=0).bpd
    np.testing.assert_allclose(found["bpd"], expected, rtol=1e-6)
    order, said = np.argsort(found["bpd"]), capsys.readouterr().out
    shown = [line.split()[1] for line in said.splitlines() if line.startswith("│")]
    assert shown == [files[i] for i in order[:5]] + ["..."] + [files[i] for i in order[-5:]]
    # Two folders are the two classes; one would be numbered anew.
    assert cli.main(["score", str(folder / "a"), f"--workdir={run}", out]) == 2
    assert "expected --label" in capsys.readouterr().err
    shutil.copytree(folder, tmp_path / "three")
    shutil.copytree(folder / "a", tmp_path / "three/c")
    assert cli.main(["score", str(tmp_path / "three"), f"--workdir={run}", out]) == 2
    assert "3 classes" in capsys.readouterr().err
    # Below train/ and test/ the folders are classes as in a data set.
    for i, split in enumerate(("train", "test")):
        shutil.copytree(folder, tmp_path / "splits" / split)
        (tmp_path / "splits" / split / "a" / "00.png").rename(
            tmp_path / "splits" / split / "a" / f"[{i}].png"
        )
    assert cli.main(["score", str(tmp_path / "splits"), f"--workdir={run}", out]) == 0
    names = scored(tmp_path / "out.csv")["name"]
    assert len(names) == 48 and "test/a/[1].png" in names


def test_one_image(tmp_path, capsys):
    workdir = runs.copy_of("images", tmp_path / "run")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "[b]one.png")
    assert cli.main(["score", str(tmp_path / "[b]one.png"), f"--workdir={workdir}"]) == 2
    assert "levels is 17, but images has 256 levels" in capsys.readouterr().err
    found = whole.load(tmp_path / "[b]one.png")
    assert found.names == ("[b]one.png",) and found.beside.label is None
    np.testing.assert_array_equal(found.data.x, np.zeros((1, 8, 8, 1), np.uint8))


def test_what_cannot_be_scored_is_one_line(points, classes, tmp_path, capsys):
    rng = np.random.default_rng(0)
    good = rng.normal(size=(4, 2))
    arrays = {
        "good.npy": good,
        "three.npy": np.zeros((4, 3)),
        "one.npy": np.zeros(2),
        "nan.npy": np.where(np.eye(4)[:, :2] > 0, np.nan, good),
        "integers.npy": np.zeros((4, 2), int),
        "levels.npy": np.full((4, 8, 8, 1), 17),
    }
    for name, x in arrays.items():
        np.save(tmp_path / name, x)
    np.savez(tmp_path / "y.npz", y=good)
    np.savez(tmp_path / "labels.npz", x=np.zeros((2, 8, 8, 1), int), labels=[0, 10])
    (tmp_path / "x.txt").write_text("1, 2")
    (tmp_path / "bad.npy").write_text("1, 2")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")
    for run, name, more, message in (
        (points, "gone.npy", [], "no file or folder"),
        (points, "x.txt", [], "expected a folder of images or a file in .npy, .npz"),
        (points, "bad.npy", [], "bad.npy as .npy: "),
        (points, "pipe.npy", [], "is not a file"),
        (points, "empty", [], "has no images"),
        (points, "three.npy", [], "expects examples of shape [2]: got"),
        (points, "one.npy", [], "the examples along the first axis"),
        (points, "nan.npy", [], "must be finite numbers (of float32): got nan at [0, 0]"),
        (points, "integers.npy", [], "integers.npy must be real numbers"),
        (classes, "levels.npy", [], "but the largest value of"),
        (classes, "labels.npz", [], "got 10 for example 1"),
        (points, "y.npz", [], "an array that would not be used: unknown name 'y'"),
        (points, "good.npy", ["--out=x.png"], "scores are written as .csv or .npz"),
        (points, "good.npy", ["--bound=vlb,ode"], "unknown bound 'vlb,ode'"),
        (points, "good.npy", ["--params=emma"], "unknown params 'emma'"),
        (points, "good.npy", ["--levels_per_example=0"], "--levels_per_example must be at least"),
        (points, "good.npy", ["--num_steps=10"], "unrecognised argument '--num_steps=10'"),
        (points, "good.npy", ["--num_samples=2", "--bound=ode"], "--num_samples is for integer"),
    ):
        words = ["score", str(tmp_path / name), f"--workdir={run}", *more]
        before = sorted(tmp_path.iterdir())
        assert cli.main(words) == cli.EXIT_USER_ERROR, name
        error = capsys.readouterr().err
        assert error.startswith("vdm: ") and message in error and error.count("\n") == 1, error
        assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_written_is_an_error_before_the_work(points, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    monkeypatch.setattr(scores, "of_dataset", lambda *one, **other: pytest.fail("it was scored"))
    words = ["score", str(tmp_path / "x.npy"), f"--workdir={points}"]
    for out, message in (("file/s.csv", "cannot write"), ("folder.csv", "is not a file")):
        assert cli.main([*words, f"--out={tmp_path / out}"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_the_file_is_never_overwritten(points, tmp_path, capsys):
    source = tmp_path / "x.npz"
    np.savez(source, x=np.zeros((4, 2)))
    before = source.read_bytes()
    (tmp_path / "link.npz").symlink_to(source)
    for out in (source, tmp_path / "link.npz"):
        words = ["score", str(source), f"--workdir={points}", f"--out={out}"]
        assert cli.main(words) == cli.EXIT_USER_ERROR
        assert "--out is the same file as IN" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_evaluate_names_the_command_that_takes_a_file(points, capsys):
    assert cli.main(["evaluate", f"--workdir={points}", "--split=new.npy"]) == 2
    error = capsys.readouterr().err
    assert f"`vdm score new.npy --workdir={points}`" in error and error.count("\n") == 1
