"""A folder of images: decoded as they are, split the same way every time, or refused by name."""

import dataclasses
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import runs
from vdm import VDM, likelihoods, networks, schedules
from vdm.run import cli, data
from vdm.run.config import DataConfig
from vdm.run.data import images, whole
from vdm.run.data.dataset import in_memory
from vdm.run.errors import UserError
from vdm.run.training import checks


def pictures(n, shape=(6, 5, 3), seed=0, dtype=np.uint8):
    high = np.iinfo(dtype).max + 1
    return np.random.RandomState(seed).randint(0, high, (n, *shape)).astype(dtype)


def write(folder, x, ending="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(x):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(
            folder / f"{i:03d}.{ending}"
        )


def load(path, split="train"):
    return data.load(DataConfig("images", path=str(path)), split)


@pytest.mark.parametrize(
    ("shape", "dtype", "levels"),
    [((6, 5, 3), np.uint8, 256), ((6, 5, 1), np.uint8, 256), ((6, 5, 1), np.uint16, None)],
)
def test_splits_are_folders(tmp_path, shape, dtype, levels):
    train, test = pictures(7, shape, 0, dtype), pictures(3, shape, 1, dtype)
    write(tmp_path / "train", train)
    write(tmp_path / "test", test)
    for split, x in (("train", train), ("test", test)):
        dataset = load(tmp_path, split)
        np.testing.assert_array_equal(dataset.x, x)
        assert (dataset.x.dtype, dataset.levels, dataset.shape) == (dtype, levels, shape)
        assert dataset.labels is None and dataset.version == f"images/{tmp_path.name}"
    np.testing.assert_array_equal(load(tmp_path).take(np.array([6, 2, 2])).x, train[[6, 2, 2]])
    assert in_memory(load(tmp_path).examples).ids[2].startswith("train/002.png:")


def test_images_alone_are_split_for_good(tmp_path):
    write(tmp_path, pictures(25))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image either")
    before = {split: in_memory(load(tmp_path, split).examples) for split in ("train", "test")}
    assert (len(before["train"]), len(before["test"])) == (22, 3)
    everything = np.concatenate([before["train"].x, before["test"].x])
    assert {x.tobytes() for x in everything} == {x.tobytes() for x in pictures(25)}
    # Another image moves none of the others, or one.
    Image.fromarray(pictures(1, seed=9)[0]).save(tmp_path / "more.png")
    images.survey.cache_clear()
    data.load.cache_clear()
    after = in_memory(load(tmp_path, "test").examples)
    assert len(set(before["test"].ids) & set(after.ids)) >= 2


def test_subfolders_are_classes(tmp_path):
    for i, name in enumerate(("cat", "dog", "eel")):
        write(tmp_path / "train" / name, pictures(2, seed=i))
        if name != "dog":
            write(tmp_path / "test" / name, pictures(1, seed=10 + i))
    train, test = load(tmp_path), load(tmp_path, "test")
    np.testing.assert_array_equal(train.labels, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(test.labels, [0, 2])
    assert train.num_classes == test.num_classes == 3
    images.survey.cache_clear()
    alone = load(tmp_path / "train")
    np.testing.assert_array_equal(np.bincount(alone.labels) <= 2, True)
    assert alone.num_classes == 3 and len(alone) == 5


def test_palettes_and_black_and_white_lose_nothing(tmp_path):
    (tmp_path / "palette").mkdir()
    colours = np.random.RandomState(0).randint(0, 256, (4, 3)).astype(np.uint8)
    index = np.random.RandomState(1).randint(0, 4, (3, 6, 5)).astype(np.uint8)
    for i, picture in enumerate(index):
        image = Image.new("P", (5, 6))
        image.putdata(picture.reshape(-1).tolist())
        image.putpalette(colours.reshape(-1).tolist())
        image.save(tmp_path / f"palette/{i}.png")
    both = [load(tmp_path / "palette", split).x for split in ("train", "test")]
    assert {x.tobytes() for part in both for x in part} == {colours[p].tobytes() for p in index}
    (tmp_path / "bits").mkdir()
    for i, picture in enumerate(index):
        Image.fromarray(picture > 1).save(tmp_path / f"bits/{i}.png")
    assert set(np.unique(load(tmp_path / "bits").x)) == {0, 255}


def bad(folder, case):
    """Spoil a good folder of twelve images; every message is to be about the file 005."""
    target = folder / "005.png"
    if case == "cut":
        target.write_bytes(target.read_bytes()[:-60])
    elif case == "not an image":
        target.write_bytes(b"hello")
    elif case == "empty":
        target.write_bytes(b"")
    elif case == "size":
        Image.fromarray(pictures(1, (7, 5, 3))[0]).save(target)
    elif case == "grey":
        Image.fromarray(pictures(1)[0, ..., 0]).save(target)
    elif case == "transparent":
        Image.fromarray(pictures(1, (6, 5, 4))[0]).save(target)
    elif case == "a colour that is transparent":
        Image.fromarray(pictures(1, (6, 5, 3))[0]).save(target, transparency=(1, 2, 3))
    elif case == "16-bit colours":
        target.write_bytes(colours_of_16_bits(6, 5))
    elif case == "two frames":
        first, second = (Image.fromarray(x) for x in pictures(2, (6, 5, 3)))
        first.save(target, "TIFF", save_all=True, append_images=[second])


def colours_of_16_bits(height, width):
    """A PNG file of a kind that Pillow reads, dropping half of the bits, but does not write."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = height * (b"\0" + bytes(range(6 * width)))
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


BAD_IMAGES = {
    "cut": r"cannot read the image .*005\.png: ",
    "not an image": r"cannot read the image .*005\.png: ",
    "empty": r"cannot read the image .*005\.png: ",
    "size": r"000\.png is 5×6 RGB, 005\.png is 5×7 RGB; expected one size",
    "grey": r"000\.png is 5×6 RGB, 005\.png is 5×6 L; expected one size and one kind",
    "transparent": r"005\.png is an image of the kind RGBA: expected one frame, grey",
    "a colour that is transparent": r"005\.png is an image of the kind RGB with transparency: ",
    "16-bit colours": r"005\.png is an image of the kind RGB of 16 bits: ",
    "two frames": r"005\.png is an image of the kind RGB of 2 frames: ",
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_bad_image_is_named(case, tmp_path):
    write(tmp_path, pictures(12, (6, 5, 3)))
    bad(tmp_path, case)
    with pytest.raises(UserError, match=BAD_IMAGES[case]) as error:
        for split in ("train", "test"):
            in_memory(load(tmp_path, split).examples)
    assert "\n" not in str(error.value)


def test_linked_folders_are_followed_and_hidden_ones_are_not(tmp_path):
    write(tmp_path / "elsewhere", pictures(12))
    (tmp_path / "own").mkdir()
    (tmp_path / "own/train").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "own/test", pictures(2, seed=1))
    write(tmp_path / "own/train/.cache", pictures(3, seed=2))
    assert [len(load(tmp_path / "own", split)) for split in ("train", "test")] == [12, 2]


def test_links_in_a_circle_end(tmp_path):
    root = tmp_path / "train"
    write(root / "a", pictures(3))
    write(root / "b", pictures(2, seed=1))
    (root / "a/to_b").symlink_to(root / "b")
    (root / "b/to_a").symlink_to(root / "a")
    (root / "a/itself").symlink_to(root / "a")
    write(tmp_path / "test", pictures(1, seed=2))
    # Once by its own name and once through the other folder's link.
    assert len(load(tmp_path)) == 2 * (3 + 2)


def test_folders_that_are_missing_or_empty(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no images for the split train"):
        load(tmp_path)
    write(tmp_path / "train", pictures(2))
    images.survey.cache_clear()
    with pytest.raises(UserError, match="no images for the split test"):
        load(tmp_path)


@pytest.mark.parametrize(("levels", "fits"), [(65536, True), (4096, True), (4095, False)])
def test_sixteen_bits_may_hold_twelve(tmp_path, levels, fits):
    x = pictures(5, (4, 4, 1), 3, np.uint16) >> 5
    x[3, 1, 2, 0] = 4095
    write(tmp_path / "train", x)
    write(tmp_path / "test", x[:2])
    dataset = load(tmp_path)
    assert "of 16 bits, of which 12 are used: the largest number is 4095, in train/003.png" in (
        dataset.taken
    )
    assert "of which 11 are used" in load(tmp_path, "test").taken
    model = VDM(schedules.linear(8.0, -6.0), networks.MLP(), likelihoods.discretised(levels))
    given = whole.load(tmp_path / "train").data  # to be scored
    if fits:
        checks.check_values(model, given)
        return checks.check_values(model, dataset)
    with pytest.raises(UserError, match=r"\(0 to 4094\), but the largest value .*003\.png"):
        checks.check_values(model, given)
    with pytest.raises(UserError, match=r"\(0 to 4094\), but the largest value .*train/003\.png"):
        checks.check_values(model, dataset)


@pytest.mark.float32
@pytest.mark.parametrize("where", [pytest.param("yes", marks=pytest.mark.long), "no"])
def test_the_whole_path_from_a_folder_to_samples(tmp_path, where, capsys):
    write(tmp_path / "own/train", pictures(9))
    write(tmp_path / "own/test", pictures(4, seed=1))
    config = runs.images(num_steps=2, batch_size=4)
    likelihood = {"name": "discretised", "levels": 256}
    config = dataclasses.replace(
        config,
        data=DataConfig("images", path=str(tmp_path / "own"), in_memory=where),
        model=dataclasses.replace(config.model, likelihood=likelihood),
    )
    path = runs.write_config_file(tmp_path / "config.py", config)
    workdir = f"--workdir={tmp_path / 'run'}"
    assert cli.main(["train", f"--config={path}", workdir]) == 0
    assert cli.main(["evaluate", workdir]) == 0
    record = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert (record["dataset_version"], record["num_examples"]) == ("images/own", 4)
    assert cli.main(["sample", workdir, "--num=4", f"--out={tmp_path / 'x.png'}"]) == 0
    # A file that is damaged later is named on the command line, in one line.
    (tmp_path / "own/test/002.png").write_bytes(b"hello")
    images.survey.cache_clear()
    data.load.cache_clear()
    capsys.readouterr()
    assert cli.main(["evaluate", workdir]) == 2
    error = capsys.readouterr().err
    assert "test/002.png" in error and error.count("\n") == 1
