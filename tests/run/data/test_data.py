"""Data sets by name: the splits are what they say, and a set that is not there says so."""

import dataclasses
import hashlib
import io
import json
import os

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import runs
from vdm.run import data
from vdm.run.config import DataConfig
from vdm.run.data import validation
from vdm.run.data.dataset import ids_checksum, in_memory
from vdm.run.errors import UserError


def load(name, split):
    return data.load(DataConfig(name), split)


needs_real_sets = pytest.mark.skipif(
    not (runs.PREPARED / "mnist").exists(), reason="no prepared mnist and cifar10 in TFDS_DATA_DIR"
)


def test_digits_are_split_as_written_down():
    order = np.random.RandomState(0).permutation(1797)
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test), train.levels, train.num_dims) == (1500, 297, 17, 64)
    bunch = load_digits()
    for split, where in ((train, np.sort(order[:1500])), (test, np.sort(order[1500:]))):
        np.testing.assert_array_equal(split.x[..., 0], bunch.images[where])
        np.testing.assert_array_equal(split.labels, bunch.target[where])
    assert train.x.dtype == np.uint8 and train.x.max() == 16


def test_the_mixture_has_the_moments_of_its_definition():
    weights = np.array([0.6, 0.3, 0.1])
    means = np.array([[-1.0, -0.5], [1.0, 0.2], [1.5, 1.8]])
    widths = np.array([0.5, 0.25, 0.15])
    train = load("mixture", "train")
    x = train.x.astype(np.float64)
    for k in range(train.num_classes):
        part = x[train.labels == k]
        assert np.all(np.abs(part.mean(0) - means[k]) < 5 * widths[k] / np.sqrt(len(part)))
        np.testing.assert_allclose(part.std(0), widths[k], rtol=5 / np.sqrt(2 * len(part)))
    mean = weights @ means
    variance = weights @ (means**2 + widths[:, None] ** 2) - mean**2
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(variance / len(x)))
    squares = (x - mean) ** 2
    assert np.all(np.abs(squares.mean(0) - variance) < 5 * squares.std(0) / np.sqrt(len(x)))


def test_the_swirl_is_a_spiral():
    x = load("swirl", "test").x.astype(np.float64)
    radius = np.linalg.norm(x, axis=-1) / 1.6
    away = np.abs(
        x
        - 1.6
        * radius[:, None]
        * np.stack([np.cos(3 * np.pi * radius), np.sin(3 * np.pi * radius)], -1)
    ).max()
    # The noise moves a point by up to about 4 of its standard deviations, and a change of
    # radius turns the nearest point of the spiral by up to 3π of it.
    assert 0.03 < away < 4.5 * 0.03 * (1 + 3 * np.pi)
    assert 0.5 < x.std() < 1.2
    # Even along the length: the square of the radius is uniform, apart from the noise.
    square = radius**2 - 2 * (0.03 / 1.6) ** 2
    assert abs(square.mean() - (0.04 + 1) / 2) < 5 * square.std() / np.sqrt(len(x))


def test_train_and_test_toys_are_different_draws():
    for name in ("swirl", "mixture"):
        train, test = load(name, "train"), load(name, "test")
        assert not set(map(tuple, train.x)) & set(map(tuple, test.x))
        for one, other in zip(train.x[: len(test)].T, test.x.T, strict=True):
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(len(test))


def test_unknown_names_are_named():
    with pytest.raises(UserError, match=r"unknown data set 'digit'.*'digits'\?"):
        load("digit", "train")
    with pytest.raises(UserError, match=r"unknown split 'tests'.*'test'\?"):
        load("digits", "tests")


def test_the_checksum_is_of_position_and_content_where_a_set_has_no_ids():
    test = load("digits", "test")
    lines = [f"{i}:{hashlib.sha256(x.tobytes()).hexdigest()}\n" for i, x in enumerate(test.x)]
    assert ids_checksum(test) == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert ids_checksum(test.subset(np.arange(296))) != ids_checksum(test)
    assert ids_checksum(test) != ids_checksum(test.subset(np.arange(297)[::-1]))


@needs_real_sets
@pytest.mark.parametrize(
    ("name", "version", "shape", "mean"),
    # The means of the original files.
    [
        ("mnist", "mnist:3.0.1", (28, 28, 1), [33.791]),
        ("cifar10", "cifar10:3.0.2", (32, 32, 3), [126.025, 123.709, 114.854]),
    ],
)
def test_a_prepared_set_is_what_its_authors_published(name, version, shape, mean, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(runs.PREPARED))
    data.load.cache_clear()
    test = load(name, "test")
    whole = in_memory(test.examples)
    assert (test.version, test.shape, test.levels, test.num_classes) == (version, shape, 256, 10)
    assert whole.x.shape == (10_000, *shape) and whole.x.dtype == np.uint8
    np.testing.assert_allclose(whole.x.mean((0, 1, 2)), mean, atol=6e-4)
    counts = {"mnist": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]}
    np.testing.assert_array_equal(np.bincount(whole.labels), counts.get(name, [1000] * 10))
    # Any index, in its order, gives what the whole has there.
    index = np.array([9_999, 3, 3, 1_500])
    part = test.take(index)
    np.testing.assert_array_equal(part.x, whole.x[index])
    np.testing.assert_array_equal(part.labels, whole.labels[index])
    if name == "cifar10":
        lines = "".join(f"{own}\n" for own in whole.ids)
        assert ids_checksum(test) == hashlib.sha256(lines.encode()).hexdigest()
        assert sorted(whole.ids) == [f"test_{i:05d}" for i in range(10_000)]


def test_a_set_that_is_not_prepared_says_what_to_run(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(tmp_path))
    data.load.cache_clear()
    for name in ("mnist", "cifar10", "downsampled_imagenet/64x64"):
        with pytest.raises(UserError, match=rf"prepare the set once.*tfds.builder\('{name}'"):
            load(name, "test")


def test_a_set_in_another_format_says_how_to_convert_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(tmp_path))
    data.load.cache_clear()
    prepare(tmp_path)
    folder = tmp_path / "downsampled_imagenet/32x32/2.0.0"
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for file in folder.glob("*.array_record-*"):
        file.rename(folder / file.name.replace("array_record", "tfrecord"))
    message = f"as tfrecord, not as array_record: .*--dataset_version_dir={folder} "
    with pytest.raises(UserError, match=message):
        load("downsampled_imagenet", "train")


def test_the_example_that_is_damaged_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(tmp_path))
    data.load.cache_clear()
    prepare(tmp_path, damaged=7)
    with pytest.raises(UserError, match=r"cannot decode example 7 of downsampled_imagenet/32x32"):
        in_memory(load("downsampled_imagenet", "train").examples)


def prepare(folder, *, name="downsampled_imagenet", size=32, damaged=None):
    """Write a set of ImageNet at 32×32 as tensorflow-datasets would, with images of noise."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    version = {"downsampled_imagenet": "2.0.0", "imagenet_resized": "0.1.0"}[name]
    folder = folder / name / "32x32" / version
    folder.mkdir(parents=True)
    features = {"image": tfds.features.Image(encoding_format="jpeg")}
    if name == "imagenet_resized":
        features["label"] = tfds.features.ClassLabel(num_classes=1000)
    tfds.features.FeaturesDict(features).save_config(folder)
    rng, info, pixels = np.random.RandomState(0), [], {}
    for split, n in (("train", 12), ("validation", 5)):
        file_name = f"{name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(os.fspath(folder / file_name), "group_size:1")
        pixels[split] = []
        for i in range(n):
            file, side = io.BytesIO(), size if i == n - 1 else 32
            Image.fromarray(rng.randint(0, 256, (side, side, 3)).astype(np.uint8)).save(
                file, "JPEG"
            )
            pixels[split].append(np.asarray(Image.open(file)))
            example = tf_example_pb2.Example()
            content = b"damaged" if i == damaged else file.getvalue()
            example.features.feature["image"].bytes_list.value.append(content)
            if "label" in features:
                example.features.feature["label"].int64_list.value.append(i)
            writer.write(example.SerializeToString())
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        shards = {"shardLengths": [str(n)], "numBytes": "1", "filepathTemplate": template}
        info.append({"name": split, **shards})
    description = {"name": name, "configName": "32x32", "version": version}
    text = json.dumps({**description, "fileFormat": "array_record", "splits": info})
    (folder / "dataset_info.json").write_text(text)
    return pixels


@pytest.mark.parametrize(
    ("name", "version", "num_classes"),
    [
        ("downsampled_imagenet", "downsampled_imagenet/32x32:2.0.0", None),
        ("downsampled_imagenet/32x32", "downsampled_imagenet/32x32:2.0.0", None),
        ("imagenet_resized/32x32", "imagenet_resized/32x32:0.1.0", 1000),
    ],
)
def test_both_sets_called_imagenet_are_read_with_their_versions(
    name, version, num_classes, monkeypatch, tmp_path
):
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(tmp_path))
    data.load.cache_clear()
    pixels = prepare(tmp_path, name=name.split("/")[0])
    for split, own in (("train", "train"), ("test", "validation"), ("validation", "validation")):
        part = load(name, split)
        assert part.version == version
        assert (part.name, part.split, part.shape) == (name, own, (32, 32, 3))
        np.testing.assert_array_equal(part.x, pixels[own])
        assert part.num_classes == num_classes
        labels = None if num_classes is None else list(range(len(part)))
        assert part.labels is labels or list(part.labels) == labels
    with pytest.raises(UserError, match=f"unknown split of {name} 'tests'"):
        load(name, "tests")
    # A run that held out no examples of its own still has the set's.
    made = runs.images()
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, name=name))
    assert len(validation.load(made, "validation")) == 5


def test_an_image_set_of_several_sizes_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(tmp_path))
    data.load.cache_clear()
    prepare(tmp_path, size=24)
    message = r"differ in size: number 11 is \[24, 24, 3\], number 0 is \[32, 32, 3\]"
    with pytest.raises(UserError, match=message):
        in_memory(load("downsampled_imagenet", "train").examples)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minst", r"unknown data set 'minst'.*'mnist'\?"),
        ("downsampled_imagenet/32", r"unknown data set.*'downsampled_imagenet/32x32'\?"),
        ("mnist:9.9.9", r"only: 3\.0\.1"),
        ("imdb_reviews", "has no feature 'image' of one image: it has text, label"),
        ("huggingface:mnist", "unknown data set"),
        ("../mnist", "unknown data set"),
        ("coco_captions", "cannot be used: No module named 'tensorflow'"),
        ("", "unknown data set"),
    ],
)
def test_names_that_are_no_image_set(name, message, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(tmp_path))
    data.load.cache_clear()
    with pytest.raises(UserError, match=message) as error:
        load(name, "train")
    assert "\n" not in str(error.value)


def test_a_path_goes_with_the_sets_that_are_files():
    with pytest.raises(UserError, match=r"'arrays' needs data\.path"):
        load("arrays", "train")
    with pytest.raises(UserError, match=r"data\.path is for .*got name='digits'"):
        data.load(DataConfig("digits", path="x.npy"), "train")
