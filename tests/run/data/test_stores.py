"""Stores on disk: from any kind the same examples and batches, or one line that says why not."""

import concurrent.futures
import io
import json
import subprocess
import sys

import datasets
import h5py
import numpy as np
import pytest
import zarr
from PIL import Image

import runs
from vdm.run import data
from vdm.run.config import DataConfig, to_dict
from vdm.run.data import arrays, stores
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import Examples, Stored, settle
from vdm.run.data.stores.store import Rows
from vdm.run.errors import UserError
from vdm.run.training.batches import batches

datasets.disable_progress_bars()

RNG = np.random.RandomState(0)
FIELD = RNG.normal(size=(40, 3, 4, 2)).astype(np.float32)
COUNTS = RNG.randint(0, 5, (40, 6, 2, 1)).astype(np.int64)
LABELS = np.arange(40) % 3
PICTURES = RNG.randint(0, 256, (12, 5, 6, 3)).astype(np.uint8)


def load(path, split="train", key="", label_key=""):
    config = DataConfig("arrays", path=str(path), key=key, label_key=label_key)
    return data.load(config, split)


def write_npz(path, found):
    np.savez(path, **found)


def write_h5(path, found, **layout):
    with h5py.File(path, "w") as file:
        for name, x in found.items():
            file.create_dataset(name, data=x, **(layout if np.ndim(x) > 1 else {}))


def write_chunks(path, found):
    """Chunks that divide neither the examples nor an example."""
    write_h5(path, found, chunks=(7, 2, *found["x"].shape[2:]), compression="gzip")


def write_zarr(path, found, version=3):
    group = zarr.open_group(path, mode="w", zarr_format=version)
    for name, x in found.items():
        group.create_array(name, data=np.asarray(x), chunks=(7, *x.shape[1:]))


def write_zarr2(path, found):
    write_zarr(path, found, version=2)


def columns(found):
    """A Dataset with nested lists, whose lengths are not part of their type."""
    return datasets.Dataset.from_dict({name: x.tolist() for name, x in found.items()})


def write_lists(path, found):
    kinds = {name: nested(datasets.Value(str(x.dtype)), x.ndim - 1) for name, x in found.items()}
    whole = columns(found).cast(datasets.Features(kinds))
    whole.save_to_disk(path, num_shards=3)


def nested(feature, depth):
    return nested(datasets.List(feature), depth - 1) if depth else feature


def write_arrays(path, found):
    """Arrays of a fixed shape, in one file of several tables."""
    kinds = {
        name: datasets.Array3D(x.shape[1:], str(x.dtype)) if x.ndim == 4 else datasets.Value("int8")
        for name, x in found.items()
    }
    whole = datasets.Dataset.from_dict(
        {name: list(x) for name, x in found.items()}, features=datasets.Features(kinds)
    )
    whole = datasets.concatenate_datasets([whole.select(range(9)), whole.select(range(9, 40))])
    whole.save_to_disk(path)


KINDS = {
    "x.npz": write_npz,
    "plain.h5": write_h5,
    "chunks.hdf5": write_chunks,
    "x.zarr": write_zarr,
    "version2.zarr": write_zarr2,
    "lists": write_lists,
    "arrays": write_arrays,
}
CONTENTS = {"field": {"x": FIELD, "labels": LABELS}, "counts": {"x": COUNTS, "labels": LABELS}}


@pytest.fixture(scope="module", params=CONTENTS)
def files(request, tmp_path_factory):
    """A folder with the same contents in a store of each kind, and the contents."""
    folder, found = tmp_path_factory.mktemp(request.param), CONTENTS[request.param]
    for name, write in KINDS.items():
        write(folder / name, found)
    np.save(folder / "x.npy", found["x"])
    return folder, found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_examples(files, kind):
    folder, found = files
    for split in ("train", "test"):
        own, other = load(folder / kind, split), load(folder / "x.npy", split)
        assert isinstance(own.examples, Stored) and own.version == f"arrays/{kind}"
        np.testing.assert_array_equal(own.x, other.x)
        assert (own.x.dtype, own.shape, len(own)) == (other.x.dtype, other.shape, len(other))
        # The label of an example is that of the row it is taken from.
        rows = [int(np.flatnonzero((found["x"] == x).all((1, 2, 3)))[0]) for x in own.x]
        np.testing.assert_array_equal(own.labels, LABELS[rows])
        assert (own.labels.dtype, own.num_classes) == (np.int32, 3)
        if own.largest is None:
            np.testing.assert_array_equal(own.moments.mean, other.moments.mean)
            np.testing.assert_array_equal(own.moments.variance, other.moments.variance)
        else:
            assert own.largest.value == other.largest.value == 4
            assert own.largest.where.removeprefix(f"{folder / kind}") == (
                other.largest.where.removeprefix(f"{folder / 'x.npy'}")
            )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_batches_in_memory_and_streamed(files, kind):
    folder, _ = files
    config = runs.points(num_steps=9, batch_size=7)  # 36 examples: epochs end within batches
    told = Condition(3)
    expected = list(batches(settle(load(folder / "x.npz"), "yes"), told, config, 0))
    for where, form in (("yes", Examples), ("no", Stored)):
        dataset = settle(load(folder / kind), where)
        assert isinstance(dataset.examples, form)
        for batch, other in zip(batches(dataset, told, config, 0), expected, strict=True):
            assert batch.x.tobytes() == other.x.tobytes() and batch.x.dtype == other.x.dtype
            np.testing.assert_array_equal(batch.cond, other.cond)


@pytest.mark.parametrize("kind", ["x.npy", *KINDS])
def test_any_rows_are_read_in_any_order_from_several_threads(files, kind):
    folder, found = files
    store = stores.stores(folder / kind).open("x")
    assert isinstance(store, stores.Store)
    assert (store.shape, store.dtype, len(store)) == (found["x"].shape, found["x"].dtype, 40)
    for rows in (slice(5, 23), slice(38, 50), slice(None), np.array([], int)):
        np.testing.assert_array_equal(store[rows], found["x"][rows])
    draws = [np.random.RandomState(i).randint(0, 40, 25) for i in range(40)]  # with repetitions
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for rows, read in zip(draws, pool.map(store.__getitem__, draws), strict=True):
            np.testing.assert_array_equal(read, found["x"][rows])


def test_a_store_reads_increasing_rows_and_no_row_twice():
    asked = []

    def read(rows):
        asked.append(rows)
        return FIELD[rows]

    store = Rows(FIELD.shape, FIELD.dtype, read)
    np.testing.assert_array_equal(store[np.array([9, 3, 30, 3])], FIELD[[9, 3, 30, 3]])
    np.testing.assert_array_equal(store[np.array([5, 4, 6])], FIELD[[5, 4, 6]])
    assert asked[0].tolist() == [3, 9, 30] and asked[1] == slice(4, 7)


def test_a_chunk_is_read_once_for_a_batch(tmp_path, monkeypatch):
    write_zarr(tmp_path / "x.zarr", CONTENTS["field"])
    store = stores.stores(tmp_path / "x.zarr").open("x")
    read, get = [], zarr.storage.LocalStore.get

    async def counted(self, key, *rest, **options):
        read.append(key)
        return await get(self, key, *rest, **options)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    store[np.array([39, 1, 8, 2, 38, 0, 9, 13])]
    assert sorted(key.split("/c/")[1] for key in read) == ["0/0/0/0", "1/0/0/0", "5/0/0/0"]

    calls, whole = [], h5py.Dataset.__getitem__
    write_chunks(tmp_path / "x.h5", CONTENTS["field"])
    store = stores.stores(tmp_path / "x.h5").open("x")
    monkeypatch.setattr(
        h5py.Dataset, "__getitem__", lambda self, rows: calls.append(rows) or whole(self, rows)
    )
    store[np.array([39, 1, 8, 2, 38, 0, 9, 13])]
    assert len(calls) == 1  # HDF5 itself reads each chunk once for a selection


def nested_h5(path):
    write_h5(
        path,
        {
            "images/x": FIELD,
            "images/kind": LABELS,
            "train/a": FIELD[:30],
            "train/c": LABELS[:30],
            "test/a": FIELD[30:],
            "test/c": LABELS[30:],
            "notes": np.array([b"any"]),
        },
    )


def test_a_key_names_another_array(tmp_path):
    nested_h5(tmp_path / "x.h5")
    np.savez(tmp_path / "x.npz", x=FIELD)
    one = load(tmp_path / "x.h5", key="images/x", label_key="images/kind")
    np.testing.assert_array_equal(one.x, load(tmp_path / "x.npz").x)
    assert one.num_classes == 3 and one.version == "arrays/x.h5:images/x"
    assert "images/x is 40 examples [3, 4, 2] of float32 with the classes images/kind" in one.taken
    assert load(tmp_path / "x.h5", key="images/x").labels is None
    np.savez(tmp_path / "any.npz", arr_0=FIELD, arr_1=COUNTS)
    np.testing.assert_array_equal(load(tmp_path / "any.npz", key="arr_0").x, one.x)
    zarr.create_array(tmp_path / "alone.zarr", data=FIELD)  # with no group around it
    np.testing.assert_array_equal(load(tmp_path / "alone.zarr").x, one.x)


def test_groups_are_splits(tmp_path):
    nested_h5(tmp_path / "x.h5")
    parts = {"train": slice(30), "test": slice(30, 40)}
    named = {f"{name}/x": FIELD[rows] for name, rows in parts.items()}
    classes = {f"{name}/labels": LABELS[rows] for name, rows in parts.items()}
    group = zarr.open_group(tmp_path / "x.zarr", mode="w")
    for name, x in (named | classes).items():
        group.create_array(name, data=x)
    for split, rows in parts.items():
        keyed = load(tmp_path / "x.h5", split, "a", "c")
        for dataset in (keyed, load(tmp_path / "x.zarr", split)):
            np.testing.assert_array_equal(dataset.x, FIELD[rows])
            np.testing.assert_array_equal(dataset.labels, LABELS[rows])


def pictures(images):
    """A Dataset of images, in the bytes of PNG files, with two classes."""
    kinds = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    found = {"image": images, "label": [i % 2 for i in range(len(images))]}
    return datasets.Dataset.from_dict(found, features=kinds)


def test_images_and_splits_of_hugging_face(tmp_path):
    whole = pictures([Image.fromarray(x) for x in PICTURES])
    parts = {"train": whole.select(range(8)), "test": whole.select(range(8, 12))}
    datasets.DatasetDict(parts | {"extra": whole}).save_to_disk(tmp_path / "d")
    for split, rows in {"train": slice(8), "test": slice(8, 12)}.items():
        dataset = load(tmp_path / "d", split, "image", "label")
        np.testing.assert_array_equal(dataset.x, PICTURES[rows])
        assert dataset.x.dtype == np.uint8 and dataset.largest.value <= 255
        np.testing.assert_array_equal(dataset.labels, np.arange(12)[rows] % 2)
    # Grey images have one channel, as those in a folder have.
    pictures([Image.fromarray(x[..., 0]) for x in PICTURES]).save_to_disk(tmp_path / "grey")
    one = load(tmp_path / "grey", key="image")
    assert one.shape == (5, 6, 1)
    # `datasets` itself is the oracle of which rows are there: a filter leaves some out.
    whole.filter(lambda row: row["label"] == 1).save_to_disk(tmp_path / "some")
    own = datasets.load_from_disk(tmp_path / "some").with_format("numpy")["image"]
    store = stores.stores(tmp_path / "some").open("image")
    np.testing.assert_array_equal(store[:], np.stack(own[:]))


@pytest.mark.parametrize(
    ("feature", "values", "expected"),
    [
        ("float16", [[0.5, 2.0]] * 3, np.float16),
        ("uint8", [[1, 255]] * 3, np.uint8),
        ("bool", [[True, False], [False, False], [True, True]], np.bool_),
    ],
)
def test_the_types_of_lists(tmp_path, feature, values, expected):
    lists = {
        "variable": datasets.List(datasets.Value(feature)),
        "fixed": datasets.List(datasets.Value(feature), length=2),
        "large": datasets.LargeList(datasets.Value(feature)),
    }
    whole = datasets.Dataset.from_dict(
        dict.fromkeys(lists, values), features=datasets.Features(lists)
    )
    whole.save_to_disk(tmp_path / "d")
    for name in lists:
        store = stores.stores(tmp_path / "d").open(name)
        assert (store.dtype, store.shape) == (expected, (3, 2))
        np.testing.assert_array_equal(store[np.array([2, 0])], np.array(values, expected)[[2, 0]])


def lists_of(values, feature=None):
    def write(path):
        kinds = None if feature is None else datasets.Features({"x": feature})
        datasets.Dataset.from_dict({"x": values}, features=kinds).save_to_disk(path)

    return write


def h5_of(**found):
    return lambda path: write_h5(path, found)


def cut_h5(path):
    write_h5(path, CONTENTS["field"])
    path.write_bytes(path.read_bytes()[:3000])


def lost_chunk(path):
    write_zarr(path, CONTENTS["field"])
    (path / "x/c/2/0/0/0").write_bytes(b"damaged")


def lost_file(path):
    write_lists(path, CONTENTS["field"])
    next(path.glob("data-*")).unlink()


def cut_arrow(path):
    write_lists(path, CONTENTS["field"])
    file = sorted(path.glob("data-*"))[1]
    file.write_bytes(file.read_bytes()[:500])


def bad_json(name):
    def write(path):
        write_zarr(path, CONTENTS["field"])
        (path / name).write_text("{")

    return write


def images_of(*images):
    return lambda path: (
        pictures(list(images))
        .rename_column("image", "x")
        .remove_columns("label")
        .save_to_disk(path)
    )


def png(size, mode="RGB"):
    return Image.new(mode, size)


def broken_picture(path):
    content = io.BytesIO()
    png((4, 4)).save(content, "png")
    whole = [{"bytes": content.getvalue(), "path": None}, {"bytes": b"no image", "path": None}]
    images_of(*whole)(path)


BAD = {
    "cut.h5": (cut_h5, "cannot read .*cut.h5 as HDF5: .*truncated file"),
    "other.h5": (lambda path: path.write_text("1,2"), "cannot read .* as HDF5: .*signature"),
    "folder.h5": (lambda path: path.mkdir(), "neither an array 'x' nor 'train'.*name: none"),
    "empty.zarr": (lambda path: path.mkdir(), "no metadata of zarr: expected one of zarr.json"),
    "json.zarr": (bad_json("zarr.json"), "cannot read .*json.zarr as zarr"),
    "inner.zarr": (bad_json("x/zarr.json"), "cannot read .*inner.zarr as zarr"),
    "chunk.zarr": (lost_chunk, "cannot read .*chunk.zarr as zarr: .*"),
    "lost": (lost_file, "cannot read .*lost as a folder of Hugging Face datasets: .*No such file"),
    "cut": (cut_arrow, "cannot read .*cut as a folder of Hugging Face"),
    "state": (
        lambda path: (path.mkdir(), (path / "state.json").write_text("{")),
        "state.json is damaged",
    ),
    "ragged": (
        lists_of([[1, 2], [3, 4], [5]]),
        r"ragged \(x\) must hold arrays of one shape: number 2 has 1 values along axis 0, the "
        "first one 2",
    ),
    "ragged inside": (
        lists_of([[[1, 2], [3, 4]], [[1, 2], [3]]]),
        "number 1 has 1 values along axis 1, the first one 2",
    ),
    "nulls": (lists_of([[1, 2], None, [3, 4]]), "a value everywhere: number 1 lacks one"),
    "nulls inside": (lists_of([[1, 2], [3, None]]), "a value everywhere: number 1 lacks one"),
    "texts": (lists_of(["a", "b"]), r"texts \(x\) must be integers or real numbers: got String"),
    "texts.h5": (h5_of(x=["a", "b"]), r"\(x\) must be integers or real numbers: got String"),
    "scalars": (lists_of([1, 2, 3]), r"along the first axis.*got shape \[3\]"),
    "scalar.h5": (h5_of(x=1.0), r"along the first axis.*got shape \[\]"),
    "structs": (lists_of([{"a": 1}]), "must be integers or real numbers: got object"),
    "sizes": (
        images_of(png((4, 4)), png((4, 5))),
        r"the images of .*\(x\) differ: number 1 is \[5, 4, 3\], the first one \[4, 4, 3\]",
    ),
    "modes": (images_of(png((4, 4)), png((4, 4), "L")), r"number 1 is \[4, 4, 1\]"),
    "clear": (images_of(png((4, 4)), png((4, 4), "RGBA")), r"number 1 of .*the kind RGBA"),
    "picture": (broken_picture, r"cannot read the image number 1 of .*picture \(x\)"),
    "paths": (
        lists_of(
            [{"bytes": None, "path": "a.png"}],
            {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        ),
        r"number 0 of .*paths \(x\) must be an image in the bytes of its file: it has none",
    ),
    "nan.h5": (
        h5_of(x=np.where(np.arange(40)[:, None, None, None] == 17, np.nan, FIELD)),
        r"nan.h5 \(x\) must be finite numbers .*: got nan at \[17, 0, 0, 0\]",
    ),
    "labels.h5": (
        h5_of(x=FIELD, labels=["a"] * 40),
        r"\(labels\) must be a class 0, 1, ... for each of the 40 examples: got String",
    ),
    "few.h5": (h5_of(x=FIELD, labels=LABELS[:3]), r"got int64 of shape \[3\]"),
    "half.h5": (
        h5_of(**{"train/x": FIELD, "test/x": FIELD, "test/labels": LABELS}),
        "only one of train and test has labels",
    ),
    "one.h5": (h5_of(**{"train/x": FIELD}), "nor 'test/x'; .*name: train/x"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_damaged_or_of_another_form_is_one_line(name, tmp_path):
    write, message = BAD[name]
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / name)
    assert "\n" not in str(error.value)


def test_names_that_are_not_there(tmp_path):
    nested_h5(tmp_path / "x.h5")
    whole = datasets.DatasetDict(train=columns({"a": LABELS}), valid=columns({"a": LABELS}))
    whole.save_to_disk(tmp_path / "d")
    known = "images/kind, images/x, notes, test/a, test/c, train/a, train/c"
    for path, key, label_key, message in (
        ("x.h5", "image/x", "", f"unknown array of .*x.h5 .data.key. 'image/x': expected one of "
         f"{known}. Did you mean 'images/x'"),
        ("x.h5", "a", "images/king", r"\(data.label_key\) 'images/king': .* mean 'images/kind'"),
        ("x.h5", "a", "images/kind", "train/a and images/kind differ in their splits"),
        ("x.h5", "", "images/kind", "data.label_key='images/kind' needs data.key"),
        ("x.h5", "", "", "would not be used: unknown name 'images/kind': .*data.key"),
        ("x.h5", "notes", "", r"x.h5 \(notes\) must be integers or real numbers"),
        ("d", "a", "", "unknown array of .*d .data.key. 'a': expected one of train/a, valid/a"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message) as error:
            load(tmp_path / path, key=key, label_key=label_key)
        assert "\n" not in str(error.value)
    for values in ({"key": "x"}, {"label_key": "x"}):
        with pytest.raises(UserError, match=r"data.(label_)?key is for the data set arrays: got"):
            data.load(DataConfig("digits", **values), "train")


@pytest.mark.parametrize(
    ("kind", "package"), [("plain.h5", "h5py"), ("x.zarr", "zarr"), ("lists", "pyarrow")]
)
def test_a_package_that_is_missing_is_named(kind, package, tmp_path, monkeypatch):
    KINDS[kind](tmp_path / kind, CONTENTS["field"])
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"{kind} is read with {package}, .*pip install 'vdm-jax\[stores\]'"
    with pytest.raises(UserError, match=message):
        load(tmp_path / kind)


def test_a_store_of_ones_own_is_a_data_set():
    store = Rows(COUNTS.shape, COUNTS.dtype, lambda rows: COUNTS[rows])
    dataset = arrays.given(store, None, "mine")
    np.testing.assert_array_equal(dataset.take(np.array([7, 2])).x, COUNTS[[7, 2]])
    assert dataset.largest.value == 4


STREAM = """
import json, multiprocessing, pathlib, re, sys
import grain  # before the memory is measured
import numpy as np
from vdm.run import config as configs, data
from vdm.run.data import arrays
from vdm.run.data.condition import Condition
from vdm.run.training.batches import batches

def peak():
    # Not ru_maxrss: that starts at the memory of the process that started this one.
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])

values, path = json.loads(sys.argv[1]), sys.argv[2]
config = configs.from_dict(values)
kind = "h5py" if path.endswith("h5") else "zarr"
__import__(kind)
arrays.CHUNK_BYTES = 2**20  # what is checked together, so that it is not the peak
before = peak()
dataset = data.load(config.data, "train")
seen = 0
for batch in batches(dataset, Condition(), config, 0):
    seen += len(batch.x)
grown = peak() - before

def read(first):
    return dataset.take(np.arange(first, first + 3)).x

# Processes that fork after reading read the same.
with multiprocessing.get_context("fork").Pool(2) as pool:
    there = pool.map(read, range(0, 90, 9))
same = all(np.array_equal(x, read(9 * i)) for i, x in enumerate(there))
print(json.dumps([seen, same, grown]))
"""


@pytest.mark.long
@pytest.mark.parametrize("name", ["x.h5", "x.zarr"])
def test_a_large_store_is_never_in_memory(name, tmp_path):
    shape, size = (20_000, 10_000), 200_000_000
    rng = np.random.default_rng(0)
    parts = (rng.integers(0, 256, (1000, 10_000), np.uint8) for _ in range(20))
    if name.endswith("h5"):
        with h5py.File(tmp_path / name, "w") as file:
            x = file.create_dataset("x", shape, np.uint8, chunks=(4, 10_000))
            for i, part in enumerate(parts):
                x[1000 * i : 1000 * (i + 1)] = part
    else:
        x = zarr.open_group(tmp_path / name, mode="w").create_array(
            "x", shape=shape, dtype=np.uint8, chunks=(4, 10_000)
        )
        for i, part in enumerate(parts):
            x[1000 * i : 1000 * (i + 1)] = part
    stored = [file.stat().st_size for file in (tmp_path / name).rglob("*") if file.is_file()]
    assert sum(stored) + (tmp_path / name).stat().st_size > 0.99 * size
    values = to_dict(runs.points(num_steps=50, batch_size=32))
    values["data"] = {"name": "arrays", "path": str(tmp_path / name), "in_memory": "no"}
    words = [sys.executable, "-c", STREAM, json.dumps(values), str(tmp_path / name)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen, same, grown = json.loads(done.stdout)
    assert seen == 50 * 32 and same
    assert grown < size / 4, f"{grown / 2**20:.0f} MiB"
