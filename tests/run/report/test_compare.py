"""Differences of runs by hand, paired and unpaired, on the page that shows them."""

import dataclasses
import json

import numpy as np
import pytest

import runs
from pages import Reader, assert_self_contained
from vdm.run import cli, config as configs
from vdm.run.evaluation import files
from vdm.run.report import compare, read, words, write

DATA = {"version": "digits:1", "num_examples": 1500, "shape": [8, 8, 1]}
HARDNESS = np.random.default_rng(5).normal(2.0, 0.5, 40)  # of the examples, alike for all runs


def record(values, ids, **fields):
    """Return the record of an evaluation whose examples took these bits, and its columns."""
    shares = {"prior": 0.01, "reconstruction": 0.02, "diffusion": 0.97}
    terms = {name: {**stats(share * values)} for name, share in shares.items()}
    found = {
        "bpd": stats(values), "terms": terms, "bound": "vlb", "num_steps": "inf", "split": "test",
        "dataset": "digits", "dataset_version": "digits:1", "num_dims": 64, "step": 3,
        "params": "ema", "num_examples": len(values), "levels_per_example": 2, "ids_checksum": ids,
        **fields,
    }  # fmt: skip
    return found, {f"{name}_{found['num_steps']}": share * values for name, share in shares.items()}


def stats(values):
    n = len(values)
    return {"mean": values.mean(), "sem": np.sqrt(values.var(ddof=1) / n), "n": n}


def workdir_of(folder, values, ids="same", config=None, **fields):
    """Make a workdir that was evaluated, of which there are no parameters."""
    folder.mkdir()
    found, kept = record(values, ids, **fields)
    configs.keep(runs.images() if config is None else config, folder)
    (folder / files.RESULT_FILE).write_text(json.dumps({**found, "results": [found]}))
    np.savez(folder / f"evaluation_{found['split']}.npz", **kept)
    return folder


def difference(first, second):
    one, other = read.read(first), read.read(second)
    return compare.difference(other, other.headline, one, one.headline)


def page_of(tmp_path, *workdirs):
    out = tmp_path / "comparison.html"
    write.write(list(workdirs), out, 0)
    page = Reader(out)
    assert_self_contained(page)
    return page


def test_on_the_same_examples_the_difference_is_paired(tmp_path):
    better = HARDNESS - 0.1 + np.random.default_rng(6).normal(0.0, 0.01, 40)
    first = workdir_of(tmp_path / "a", HARDNESS)
    second = workdir_of(tmp_path / "b", better)
    found = difference(first, second)
    each = [y - x for x, y in zip(HARDNESS, better, strict=True)]
    mean = sum(each) / 40
    sem = (sum((x - mean) ** 2 for x in each) / 39 / 40) ** 0.5
    assert found.paired
    assert (found.mean, found.sem) == (pytest.approx(mean), pytest.approx(sem))
    # That of independent means would hide it: the examples differ far more than the runs.
    assert sem < 0.002 < 0.08 < np.hypot(*2 * [HARDNESS.std(ddof=1) / 40**0.5])
    page = page_of(tmp_path, first, second)
    (row,) = page.rows("b", f"{np.mean(better):.3f} ± {better.std(ddof=1) / 40**0.5:.3f}")
    assert row[2] == f"−{-mean:.4f} ± {sem:.4f}"
    assert "Differences are paired" in page.text and "(unpaired)" not in page.text


@pytest.mark.parametrize("broken", ["ids", "missing", "empty", "stale"])
def test_otherwise_it_is_unpaired_and_says_so(tmp_path, broken):
    other = np.random.default_rng(7).normal(2.2, 0.4, 40)
    first = workdir_of(tmp_path / "a", HARDNESS)
    second = workdir_of(tmp_path / "b", other, ids="others" if broken == "ids" else "same")
    if broken == "missing":
        (second / "evaluation_test.npz").unlink()
    if broken == "empty":
        (second / "evaluation_test.npz").write_bytes(b"")
    if broken == "stale":  # of an evaluation before this one
        np.savez(second / "evaluation_test.npz", **record(other + 1e-3, "same")[1])
    found = difference(first, second)
    expected = np.sqrt(HARDNESS.var(ddof=1) / 40 + other.var(ddof=1) / 40)
    assert not found.paired
    assert found.mean == pytest.approx(other.mean() - HARDNESS.mean())
    assert found.sem == pytest.approx(expected)
    page = page_of(tmp_path, first, second)
    assert f"{found.mean:.3f} ± {expected:.3f} (unpaired)" in page.text
    assert "Differences are paired" not in page.text


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dataset_version": "mnist:3"}, "the data sets differ: mnist:3 and digits:1"),
        ({"num_dims": 784}, "the numbers of dimensions differ: 784 and 64"),
        ({"split": "train"}, "the splits differ: train and test"),
        ({"num_steps": 10}, "the bounds differ: variational, T = 10 and variational, T = ∞"),
        ({"clip_denoised": True}, "the bounds differ: variational, T = ∞, x̂ clipped and"),
    ],
)
def test_what_is_not_of_the_same_thing_has_no_difference(tmp_path, fields, reason):
    first = workdir_of(tmp_path / "a", HARDNESS)
    second = workdir_of(tmp_path / "b", HARDNESS + 0.5, **fields)
    assert reason in difference(first, second)
    page = page_of(tmp_path, first, second)
    assert f"No difference is given between b and a: {reason}" in page.text
    # Both are shown all the same.
    assert page.rows("a", page.rows("a")[0][1]) and len(page.rows("b")) >= 1


def test_a_density_is_not_held_against_a_probability(tmp_path):
    first = workdir_of(tmp_path / "a", HARDNESS)
    second = workdir_of(tmp_path / "b", HARDNESS, config=runs.points())
    assert "different kinds" in difference(first, second)


def test_bits_given_the_class_are_not_held_against_bits_without(tmp_path):
    """The class of a digit alone is up to log₂ 10 bits of an image."""
    first = workdir_of(tmp_path / "a", HARDNESS)
    second = workdir_of(tmp_path / "b", HARDNESS, config=runs.images(num_classes=10))
    third = workdir_of(tmp_path / "c", HARDNESS - 0.1, config=runs.images(num_classes=10))
    assert "conditioned on the class" in difference(first, second) == difference(second, first)
    assert difference(second, third).mean == pytest.approx(-0.1)
    plain, told = (read.read(workdir) for workdir in (first, second))
    assert "log-likelihood;" in words.sentence(plain, plain.headline)
    assert "log-likelihood given the class;" in words.sentence(told, told.headline)


@pytest.mark.parametrize(("num_classes", "given"), [(8, False), (80, True)])
def test_to_be_told_how_an_image_was_augmented_is_no_class(tmp_path, num_classes, given):
    """A square has eight turns and flips, and digits ten classes."""
    config = runs.images(num_classes=num_classes)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, augment="group"))
    workdir = workdir_of(tmp_path / "a", HARDNESS, config=config)
    (workdir / "data.json").write_text(json.dumps(DATA))
    assert read.read(workdir).class_conditional is given


def test_a_bound_that_both_have_is_pointed_to(tmp_path):
    first = workdir_of(tmp_path / "a", HARDNESS)
    second = workdir_of(tmp_path / "b", HARDNESS, num_steps=10)
    record = json.loads((second / files.RESULT_FILE).read_text())
    assert "compared below" not in page_of(tmp_path, first, second).text
    record["results"].append(json.loads((first / files.RESULT_FILE).read_text())["results"][0])
    (second / files.RESULT_FILE).write_text(json.dumps(record))
    assert "compared below" in page_of(tmp_path, first, second).text


def test_the_columns_of_other_bounds_are_found(tmp_path):
    """Of an ODE with its dequantisation and K, of real numbers, and of a clipped bound."""
    cases = [
        ({"dequantisation": "uniform", "num_samples": 10}, "ode_uniform_10"),
        ({"dequantisation": None, "num_samples": 1}, "ode_1"),
    ]
    for i, (fields, column) in enumerate(cases):
        fields |= {"bound": "ode", "nfe": {"mean": 30.0, "max": 31.0}}
        workdir = workdir_of(tmp_path / f"{i}", HARDNESS, **fields)
        np.savez(workdir / "evaluation_test.npz", **{column: HARDNESS})
        run = read.read(workdir)
        np.testing.assert_array_equal(files.of_examples(workdir, run.headline), HARDNESS)
    workdir = workdir_of(tmp_path / "clipped", HARDNESS, clip_denoised=True)
    kept = {f"{name}_clipped": x for name, x in record(HARDNESS, "")[1].items()}
    np.savez(workdir / "evaluation_test.npz", **kept)
    run = read.read(workdir)
    np.testing.assert_allclose(files.of_examples(workdir, run.headline), HARDNESS)


def test_only_values_that_differ_are_listed(tmp_path):
    first = workdir_of(tmp_path / "a", HARDNESS)
    second = workdir_of(tmp_path / "b", HARDNESS, config=runs.points())
    page = page_of(tmp_path, first, second)
    assert page.rows("model.likelihood.levels") == [["model.likelihood.levels", "17", "–"]]
    assert page.rows("train.num_steps") == [["train.num_steps", "3", "4"]]
    assert not page.rows("optimizer.b1") and not page.rows("seed")


def test_parameters_that_are_not_averaged_are_told(tmp_path):
    first = workdir_of(tmp_path / "a", HARDNESS)
    second = workdir_of(tmp_path / "b", HARDNESS, params="raw")
    page = page_of(tmp_path, first, second)
    assert page.rows("a")[0][5] == "3" and page.rows("b")[0][5] == "3 (raw parameters)"
    bounds = page.rows("test: variational, T = ∞")
    assert [row[1] for row in bounds] == ["a", "b (raw parameters)"]


def test_values_are_told_in_full():
    assert words.plain([0.9999999, 1e-5, 2.0, 3]) == "(0.9999999, 1e-05, 2.0, 3)"


def test_names_that_are_alike_are_told_apart_by_their_path(tmp_path, monkeypatch):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        workdir_of(tmp_path / name / "_run", HARDNESS)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "x/_run", "y/_run", "--num=0"]) == 0
    page = Reader(tmp_path / "comparison.html")
    assert len(page.rows("x/_run")) == 1 and len(page.rows("y/_run")) == 1
