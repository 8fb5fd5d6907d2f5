"""Arrays of one's own: read as they are, from training to samples, or refused in one line."""

import dataclasses
import json

import numpy as np
import pytest

import runs
from vdm.run import cli, data
from vdm.run.config import DataConfig
from vdm.run.data import arrays
from vdm.run.data.dataset import Stored
from vdm.run.errors import UserError
from vdm.run.training import parts

RNG = np.random.RandomState(0)
FIELD = RNG.normal(size=(40, 3, 4, 2))  # float64
COUNTS = RNG.randint(0, 5, (40, 8, 8, 4)).astype(np.int64)
LABELS = np.arange(40) % 3


def load(path, split="train"):
    return data.load(DataConfig("arrays", path=str(path)), split)


def with_data(config, path):
    """The config of a run, of the arrays at a path."""
    return dataclasses.replace(config, data=DataConfig("arrays", path=str(path)))


def field_config(path):
    return with_data(runs.points(num_steps=2, batch_size=4), path)


def counts_config(path):
    config = runs.images(num_steps=2, batch_size=4)
    likelihood = {"name": "discretised", "levels": 5}
    return with_data(
        dataclasses.replace(config, model=dataclasses.replace(config.model, likelihood=likelihood)),
        path,
    )


def layouts(folder):
    """The same data, laid out in every way."""
    np.save(folder / "x.npy", FIELD)
    np.savez(folder / "x.npz", x=FIELD, labels=LABELS)
    parts = {"train": FIELD[:30], "test": FIELD[30:]}
    labels = {"train_labels": LABELS[:30], "test_labels": LABELS[30:]}
    np.savez(folder / "parts.npz", **parts, **labels)
    (folder / "npy").mkdir()
    for name, array in (parts | labels).items():
        np.save(folder / "npy" / f"{name}.npy", array)
    (folder / "npz").mkdir()
    for name in parts:
        np.savez(folder / f"npz/{name}.npz", x=parts[name], labels=labels[f"{name}_labels"])


def test_every_layout_gives_the_arrays(tmp_path):
    layouts(tmp_path)
    for name in ("parts.npz", "npy", "npz"):
        train, test = (load(tmp_path / name, split) for split in ("train", "test"))
        np.testing.assert_array_equal(train.x, FIELD[:30].astype(np.float32))
        np.testing.assert_array_equal(test.x, FIELD[30:].astype(np.float32))
        np.testing.assert_array_equal(train.labels, LABELS[:30])
        np.testing.assert_array_equal(test.labels, LABELS[30:])
        assert (test.num_classes, test.shape) == (3, (3, 4, 2))
        assert (test.name, test.version) == ("arrays", f"arrays/{name}")
    for name in ("x.npy", "x.npz"):
        train, test = (load(tmp_path / name, split) for split in ("train", "test"))
        assert (len(train), len(test)) == (36, 4)
        together = np.concatenate([train.x, test.x])
        # Each example is in one split, and beside its label.
        find = [int(np.argmax((FIELD.astype(np.float32) == x).all((1, 2, 3)))) for x in together]
        assert sorted(find) == list(range(40))
        if name == "x.npz":
            labels = np.concatenate([train.labels, test.labels])
            np.testing.assert_array_equal(labels, LABELS[find])
        else:
            assert train.labels is None


def test_types_are_the_narrowest_that_hold_the_values(tmp_path):
    cases = {
        "float64": (FIELD, np.float32),
        "float16": (FIELD.astype(np.float16), np.float32),
        "int64": (COUNTS, np.uint8),
        "wide": (COUNTS * 100, np.uint16),
        "bool": (COUNTS > 2, np.uint8),
    }
    for name, (x, dtype) in cases.items():
        np.save(tmp_path / f"{name}.npy", x)
        dataset = load(tmp_path / f"{name}.npy")
        assert isinstance(dataset.examples, Stored)  # and nothing is read before it is needed
        assert dataset.x.dtype == dataset.examples.dtype == dtype
        assert dataset.levels is None
    largest = load(tmp_path / "wide.npy").largest
    first = [int(i) for i in np.argwhere(COUNTS == 4)[0]]
    assert (largest.value, largest.where) == (400, f"{tmp_path / 'wide.npy'} (x) at {first}")


@pytest.mark.parametrize("rows", [1, 7])
def test_a_value_is_found_where_it_is_in_the_file(rows, tmp_path, monkeypatch):
    # However many examples are looked at together.
    monkeypatch.setattr(arrays, "CHUNK_BYTES", rows * FIELD[0].nbytes)
    x = FIELD.copy()
    x[17, 2, 1, 0] = 1e39
    np.save(tmp_path / "field.npy", x)
    with pytest.raises(UserError, match=r"finite numbers \(of float32\): got 1e\+39 at \[17, 2, 1"):
        load(tmp_path / "field.npy")
    counts = np.zeros((40, 3, 8), np.int64)
    counts[29, 1, 5] = 3
    np.save(tmp_path / "counts.npy", counts)
    assert load(tmp_path / "counts.npy", "test").largest.where.endswith("at [29, 1, 5]")


@pytest.mark.float32
@pytest.mark.parametrize(
    ("x", "config", "out", "extra"),
    [
        (FIELD, field_config, "samples.npy", []),
        (COUNTS, counts_config, "samples.npy", ["--config.data.in_memory=no"]),
        # test_images.py takes the same path with colours.
        pytest.param(*(COUNTS[..., :3], counts_config, "samples.png", []), marks=pytest.mark.long),
    ],
    ids=["field", "streamed counts", "colours"],
)
def test_the_whole_path_from_an_array_to_samples(tmp_path, x, config, out, extra):
    np.save(tmp_path / "own.npy", x)
    config = config(tmp_path / "own.npy")
    path = runs.write_config_file(tmp_path / "config.py", config)
    workdir = f"--workdir={tmp_path / 'run'}"
    assert cli.main(["train", f"--config={path}", workdir, *extra]) == 0
    assert cli.main(["evaluate", workdir]) == 0
    record = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert np.isfinite(record["bpd"]["mean"])
    assert (record["dataset"], record["dataset_version"]) == ("arrays", "arrays/own.npy")
    assert (record["num_examples"], record["num_dims"]) == (4, x[0].size)
    checksums = [row["ids_checksum"] for row in record["results"]]
    assert len(checksums) == 2 and all(len(c) == 64 for c in checksums)
    assert cli.main(["sample", workdir, "--num=3", f"--out={tmp_path / out}"]) == 0
    if out.endswith(".npy"):
        samples = np.load(tmp_path / out)
        assert samples.shape == (3, *x.shape[1:])
        assert samples.dtype.kind == ("f" if x is FIELD else "i")


def nan_at_17(x):
    x = x.copy()
    x[17, 2, 1, 0] = np.nan
    x[20] = np.inf
    return x


BAD_ARRAYS = {
    "nan": (lambda: nan_at_17(FIELD), r"x.npy \(x\) must be finite.*nan at \[17, 2, 1, 0\]"),
    "inf": (
        lambda: np.full((4, 2), np.inf),
        r"must be finite numbers .of float32.: got inf at \[0, 0\]",
    ),
    "negative": (lambda: COUNTS - 1, r"must be whole numbers from 0: got -1 at \[0, "),
    "complex": (lambda: FIELD + 1j, "must be integers or real numbers: got complex128"),
    "text": (lambda: np.array([["a"]]), "must be integers or real numbers: got <U1"),
    "one axis": (lambda: FIELD[:, 0, 0, 0], r"along the first axis.*got shape \[40\]"),
    "empty": (lambda: FIELD[:0], r"got shape \[0, 3, 4, 2\]"),
    "objects": (lambda: np.array([[1, "a"]], object), "cannot read .*x.npy"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_a_bad_array_is_refused(case, tmp_path):
    make, message = BAD_ARRAYS[case]
    np.save(tmp_path / "x.npy", make(), allow_pickle=True)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / "x.npy")
    assert "\n" not in str(error.value)


BAD_ARCHIVES = {
    "other name": (
        dict(arr_0=FIELD),
        "would not be used: unknown name 'arr_0': expected one of test",
    ),
    "one split": (dict(train=FIELD), "has neither an array 'x' nor 'test'.*known name: train"),
    "shapes": (
        dict(train=FIELD, test=FIELD[:, :2]),
        r"differ in kind: float64 \[3, 4, 2\] and float64 \[2, 4, 2\]",
    ),
    "kinds": (
        dict(train=FIELD, test=COUNTS[:, :3, :4, :2]),
        r"differ in kind: float64 \[3, 4, 2\] and int64 \[3, 4, 2\]",
    ),
    "half the labels": (
        dict(train=FIELD, test=FIELD, test_labels=LABELS),
        "only one of train and test has labels",
    ),
    "few labels": (dict(x=FIELD, labels=LABELS[:3]), r"for each of the 40 examples.*shape \[3\]"),
    "float labels": (dict(x=FIELD, labels=LABELS / 2), "must be a class .*got float64"),
    "negative labels": (dict(x=FIELD, labels=LABELS - 1), "must be a class .*got int64 from -1"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_is_refused(case, tmp_path):
    arrays, message = BAD_ARCHIVES[case]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / "x.npz")
    assert "\n" not in str(error.value)


def test_files_that_are_missing_or_damaged(tmp_path):
    layouts(tmp_path)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:900])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:900])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "x.csv").write_text("1,2")
    (tmp_path / "nothing").mkdir()
    for name, message in {
        "none.npy": "no file or folder .*none.npy",
        "cut.npz": "cannot read .*cut.npz",
        "cut.npy": "cannot read .*cut.npy",
        "empty.npy": "cannot read .*empty.npy",
        "x.csv": r"\.npy, .* files or a folder: got 'x\.csv'",
        "nothing": "nor 'train'; its arrays with a known name: none",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            load(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.usefixtures("unchecked")
def test_data_and_likelihood_that_do_not_go_together(tmp_path):
    np.save(tmp_path / "counts.npy", COUNTS)
    np.save(tmp_path / "field.npy", FIELD.reshape(40, 2, 3, 4))
    large = COUNTS.copy()
    large[7, 3, 2, 1] = 5
    np.savez(tmp_path / "large.npz", train=large, test=COUNTS)
    for config, message in (
        (field_config(tmp_path / "counts.npy"), "models real numbers: got uint8 data"),
        (counts_config(tmp_path / "field.npy"), r"models integers 0\.\.4: got float32 data"),
        (
            counts_config(tmp_path / "large.npz"),
            r"levels is 5 \(0 to 4\), but the largest value of arrays/large.npz is 5, in "
            r".*large.npz \(train\) at \[7, 3, 2, 1\]",
        ),
    ):
        with pytest.raises(UserError, match=message) as error:
            parts.prepare(config)
        assert "\n" not in str(error.value)


@pytest.mark.float32
def test_values_outside_the_levels_of_the_test_split_stop_the_training(tmp_path, capsys):
    np.savez(tmp_path / "large.npz", train=COUNTS, test=COUNTS + 1)
    path = runs.write_config_file(tmp_path / "c.py", counts_config(tmp_path / "large.npz"))
    assert cli.main(["train", f"--config={path}", f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert "the largest value of arrays/large.npz is 5" in error and error.count("\n") == 1
