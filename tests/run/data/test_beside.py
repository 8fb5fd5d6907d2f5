"""Vectors and fields beside the user's arrays: in every layout, or refused in one line."""

import dataclasses

import h5py
import numpy as np
import pytest

import runs
from vdm.run import data
from vdm.run.config import DataConfig
from vdm.run.data import arrays, beside, dataset, validation
from vdm.run.data.dataset import settle
from vdm.run.errors import UserError
from vdm.run.training import parts

RNG = np.random.RandomState(0)
X = RNG.normal(size=(40, 3, 4, 2))
COND = RNG.normal(size=(40, 5))
FIELD = RNG.normal(size=(40, 3, 4, 3))
LABELS = np.arange(40) % 3
WHOLE = {"x": X, "labels": LABELS, "cond": COND, "cond_field": FIELD}


def load(path, split="train", **keys):
    data.load.cache_clear()
    return data.load(DataConfig("arrays", path=str(path), **keys), split)


def split(name):
    return {key: value[:30] if name == "train" else value[30:] for key, value in WHOLE.items()}


def npz(path):
    """The documented names of splits in one file."""
    names = {"x": "{}", "labels": "{}_labels", "cond": "{}_cond", "cond_field": "{}_cond_field"}
    np.savez(
        path, **{names[k].format(s): v for s in ("train", "test") for k, v in split(s).items()}
    )


def test_every_layout_gives_each_example_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "CHUNK_BYTES", 4 * X[0].nbytes)  # in several parts
    npz(tmp_path / "parts.npz")
    (tmp_path / "npz").mkdir()
    (tmp_path / "npy").mkdir()
    for part in ("train", "test"):
        np.savez(tmp_path / f"npz/{part}.npz", **split(part))
        for key, value in split(part).items():
            np.save(tmp_path / f"npy/{part}{'' if key == 'x' else '_' + key}.npy", value)
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        for part in ("train", "test"):
            for key, value in split(part).items():
                file[f"{part}/{key}"] = value
    for name in ("parts.npz", "npz", "npy", "groups.h5"):
        for part in ("train", "test"):
            found, expected = load(tmp_path / name, part), split(part)
            for one in (found, settle(found, "yes")):
                some = one.take(np.array([7, 2]))
                np.testing.assert_array_equal(some.vector, expected["cond"][[7, 2]])
                np.testing.assert_array_equal(some.field, expected["cond_field"][[7, 2]])
                np.testing.assert_array_equal(some.labels, expected["labels"][[7, 2]])
            np.testing.assert_allclose(found.vector.mean, expected["cond"].mean(0), rtol=1e-12)
            np.testing.assert_allclose(
                found.field.variance, expected["cond_field"].var((0, 1, 2)), rtol=1e-12
            )
            assert "with the classes" in found.taken and "[5]" in found.taken
            assert "the fields" in found.taken and "[3, 4, 3]" in found.taken


def test_one_file_without_splits_and_whole_numbers(tmp_path):
    whole = {"x": X, "cond": np.arange(40), "cond_field": FIELD > 0}
    np.savez(tmp_path / "x.npz", **whole)
    parts_of = [load(tmp_path / "x.npz", part) for part in ("train", "test")]
    x = np.concatenate([part.x for part in parts_of])
    find = [int(np.argmax((X.astype(np.float32) == one).all((1, 2, 3)))) for one in x]
    vectors = np.concatenate([part.take(np.arange(len(part))).vector for part in parts_of])
    np.testing.assert_array_equal(vectors, np.asarray(find, float)[:, None])
    fields = np.concatenate([part.take(np.arange(len(part))).field for part in parts_of])
    np.testing.assert_array_equal(fields, (FIELD > 0).astype(np.float32)[find])
    train = sorted(find[: len(parts_of[0])])
    np.testing.assert_allclose(parts_of[0].vector.mean, [np.mean(train)])
    np.testing.assert_allclose(parts_of[0].vector.variance, [np.var(train)])


def test_keys_name_vectors_and_fields(tmp_path):
    with h5py.File(tmp_path / "sim.h5", "w") as file:
        file["maps"], file["omega"], file["wind"], file["cond"] = X, COND, FIELD, COND * 2
    found = load(tmp_path / "sim.h5", key="maps", cond_key="omega", cond_field_key="wind")
    some = found.take(np.arange(3))
    assert some.vector.shape == (3, 5) and some.field.shape == (3, 3, 4, 3)
    # A documented name beside the key is never passed over without a word.
    alone = load(tmp_path / "sim.h5", key="maps")
    assert alone.vector is None and "cond is not used: data.cond_key='cond' takes it" in alone.taken
    with pytest.raises(UserError, match=r"array of .*sim.h5 \(data.cond_key\) 'omgea'.*'omega'"):
        load(tmp_path / "sim.h5", key="maps", cond_key="omgea")
    with pytest.raises(UserError, match=r"data.cond_key='omega' needs data.key"):
        load(tmp_path / "sim.h5", cond_key="omega")
    with pytest.raises(UserError, match=r"data.cond_field_key is for the data set arrays"):
        data.load(DataConfig("digits", cond_field_key="wind"), "train")


def changed(name, index, value):
    array = WHOLE[name].copy()
    array[index] = value
    return {**WHOLE, name: array}


BAD = {
    "nan": (changed("cond", (17, 2), np.nan), r"\(cond\) must be finite.*got nan for example 17"),
    "infinite field": (
        changed("cond_field", (3, 0, 1, 2), np.inf),
        r"\(cond_field\) must be finite.*got inf for example 3",
    ),
    "fewer vectors": (WHOLE | {"cond": COND[:39]}, r"each of the 40 examples.*got shape \[39, 5\]"),
    "more fields": (
        WHOLE | {"cond_field": np.zeros((41, 3, 4, 1))},
        r"of shape \[40, 3, 4, c\]: got shape \[41, 3, 4, 1\]",
    ),
    "other positions": (
        WHOLE | {"cond_field": np.zeros((40, 4, 4, 1))},
        r"of shape \[40, 3, 4, c\]: got shape \[40, 4, 4, 1\]",
    ),
    "three axes": (WHOLE | {"cond": np.zeros((40, 2, 2))}, r"\[40, c\] or \[40\]: got shape"),
    "texts": (WHOLE | {"cond": np.array(["a"] * 40)}, r"\(cond\) must be numbers: got <U1"),
    "no numbers": (WHOLE | {"cond": np.zeros((40, 0))}, r"got shape \[40, 0\]"),
    "unknown": (WHOLE | {"conds": COND}, r"would not be used: unknown name 'conds'.*'cond'"),
    "one split": (
        dict(train=X, test=X, train_cond=COND),
        r"training and test cond differ in shape: \[5\] and none",
    ),
    "other sizes": (
        dict(train=X, test=X, train_cond=COND, test_cond=COND[:, :2]),
        r"training and test cond differ in shape: \[5\] and \[2\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_vectors_and_fields_are_one_line(case, tmp_path):
    found, message = BAD[case]
    np.savez(tmp_path / "x.npz", **found)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / "x.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rows", [1, 7])
def test_moments_are_those_of_a_split_however_it_is_read(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "CHUNK_BYTES", rows * FIELD[0].nbytes)
    far = FIELD + 1e6
    far[..., 1] = 0.1  # a constant has no variance, and keeps its unit
    np.savez(tmp_path / "x.npz", x=X, cond_field=far)
    found = load(tmp_path / "x.npz")
    own = found.take(np.arange(len(found))).field
    np.testing.assert_allclose(found.field.mean, own.mean((0, 1, 2)), rtol=1e-14)
    np.testing.assert_allclose(found.field.variance[[0, 2]], own.var((0, 1, 2))[[0, 2]], rtol=1e-9)
    assert found.field.variance[1] == 0.0


def config(path, **network):
    made = runs.points(num_steps=1, batch_size=4)
    model = dataclasses.replace(made.model, network={**made.model.network, **network})
    return dataclasses.replace(made, data=DataConfig("arrays", path=str(path)), model=model)


UNFIT = [
    ({"cond_dim": 4}, r"cond_dim is 4, but the vectors of arrays/x.npz \(cond\) have 5 numbers"),
    (
        {"cond_channels": 2},
        r"cond_channels is 2, but the fields of arrays/x.npz .* have 3 channels",
    ),
    ({"num_classes": 2, "cond_dim": 5}, r"num_classes is 2, but arrays has 3 classes"),
]


@pytest.mark.parametrize(("network", "message"), UNFIT)
def test_a_network_of_another_size_is_refused(network, message, tmp_path):
    np.savez(tmp_path / "x.npz", **WHOLE)
    with pytest.raises(UserError, match=message):
        parts.prepare(config(tmp_path / "x.npz", **network))


def test_a_field_is_not_augmented(tmp_path):
    np.savez(tmp_path / "x.npz", **WHOLE)
    made = config(tmp_path / "x.npz", cond_channels=3)
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, augment="group"))
    with pytest.raises(UserError, match="augment='group' would turn examples and not their fields"):
        parts.prepare(made)


def test_conditions_that_data_lack_or_a_network_does_not_take(tmp_path):
    np.savez(tmp_path / "plain.npz", x=X)
    with pytest.raises(
        UserError, match=r"cond_dim is 5, but arrays/plain.npz has no vectors: .* co"
    ):
        parts.prepare(config(tmp_path / "plain.npz", cond_dim=5))
    np.savez(tmp_path / "x.npz", **WHOLE)
    made = parts.prepare(config(tmp_path / "x.npz", cond_dim=5))
    lines = data.condition.unused(made.trainer.model.network, made.dataset)
    assert lines == [
        "the fields of arrays/x.npz (cond_field) are not used: the network takes them with "
        "model.network.cond_channels=3"
    ]
    assert made.condition.names == ("vector",) and made.example.cond.shape == (1, 5)


def test_validation_has_no_part_in_the_scale(tmp_path):
    np.savez(tmp_path / "x.npz", **WHOLE)
    made = config(tmp_path / "x.npz", cond_dim=5)
    made = dataclasses.replace(made, train=dataclasses.replace(made.train, validation_examples=9))
    found = validation.load(made, "train")
    own = found.take(np.arange(len(found)))
    assert len(found) == 27
    np.testing.assert_allclose(found.vector.mean, own.vector.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.field.variance, own.field.var((0, 1, 2)), rtol=1e-12)


OWN = """
import numpy as np

def load(split):
    rng = np.random.RandomState(len(split))
    x = rng.normal(size=(20, 3, 4, 2))
    return x, {%s}
"""


def test_an_own_function_returns_a_dict(modules):
    (modules / "mine.py").write_text(
        OWN % "'cond': x.mean((1, 2)), 'cond_field': x[..., :1], 'labels': np.arange(20) % 4"
    )
    (modules / "bad.py").write_text(OWN % "'conds': x.mean((1, 2))")
    data.load.cache_clear()
    found = data.load(DataConfig("mine:load"), "test")
    some = found.take(np.array([3]))
    np.testing.assert_allclose(some.vector, some.x.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(some.field, some.x[..., :1], rtol=1e-6)
    assert (some.labels[0], found.num_classes) == (3, 4)
    with pytest.raises(UserError, match=r"bad:load\('train'\): unknown key 'conds': .*cond"):
        data.load(DataConfig("bad:load"), "test")


def test_arrays_beside_given_examples_are_checked():
    called = beside.Called("labels", "cond", "cond_field")
    made = arrays.conditioned(
        arrays.given(X, None, "x"), data.condition.Conditions(None, COND, FIELD), called
    )
    np.testing.assert_array_equal(made.take(np.array([5])).field, FIELD[[5]])
    with pytest.raises(UserError, match="cond must be a vector for each of the 40 examples"):
        arrays.conditioned(made, data.condition.Conditions(None, COND[:4]), called)
