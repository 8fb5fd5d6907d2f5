"""What is compressed comes back as it was: every kind of file, every kind of integer."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from vdm.run.compression import files
from vdm.run.compression.header import Header
from vdm.run.errors import UserError

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (3, 4, 5, 1), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
DEEP = RANDOM.integers(0, 2**16, (3, 4, 5, 1), dtype=np.uint16)


def header_of(found, **changes):
    header = Header(
        kind=found.kind,
        names=found.names,
        num_examples=found.size,
        shape=found.shape,
        dtype=found.dtype.str,
        per_block=2,
        model=bytes(8),
        schedule=bytes(4),
        probe=bytes(4),
        num_steps=1,
        batch_size=1,
        resolution=1,
    )
    return header._replace(**changes)


def there_and_back(source, target):
    """Read in parts of two and write them, the last part first."""
    found = files.read(source)
    starts = range(0, found.size, 2)
    with files.writing(target, header_of(found)) as put:
        for start in reversed(starts):
            rows = range(start, min(start + 2, found.size))
            put(rows, found.take(rows), found.conditions)
    return found


def picture(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)


@pytest.mark.parametrize("dtype", ["u1", "<i8", ">u2", "?"])
def test_arrays(tmp_path, dtype):
    x = (GREY > 99) if dtype == "?" else (GREY // 2).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    found = there_and_back(tmp_path / "x.npy", tmp_path / "y.npy")
    y = np.load(tmp_path / "y.npy")
    assert y.dtype == x.dtype and np.array_equal(x, y)
    assert (found.kind, found.shape, found.size) == ("npy", (4, 5, 1), 3)


@pytest.mark.parametrize("name", ["images", "file", "allow_pickle"])
def test_an_archive_of_one_array_keeps_its_name(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, archive.open(f"{name}.npy", "w") as f:
        np.lib.format.write_array(f, COLOUR)
    there_and_back(tmp_path / "x.npz", tmp_path / "y.npz")
    with np.load(tmp_path / "y.npz") as back:
        assert back.files == [name] and np.array_equal(back[name], COLOUR)
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("notes.txt", "no array")
    with pytest.raises(UserError, match=r"'notes.txt' is not an array"):
        files.read(tmp_path / "z.npz")


@pytest.mark.parametrize("images", [GREY, COLOUR, DEEP], ids=["grey", "colour", "16 bits"])
def test_pictures(tmp_path, images):
    names = ["b.png", "a.png", "c/a.PNG"]
    for name, image in zip(names, images, strict=True):
        picture(tmp_path / "in" / name, image)
    found = there_and_back(tmp_path / "in", tmp_path / "out")
    assert found.names == ("a.png", "b.png", "c/a.PNG") and found.dtype == images.dtype
    for name, image in zip(names, images, strict=True):
        back = np.asarray(Image.open(tmp_path / "out" / name))
        np.testing.assert_array_equal(back.reshape(image.shape), image)
    there_and_back(tmp_path / "in/a.png", tmp_path / "one.png")
    back = np.asarray(Image.open(tmp_path / "one.png"))
    np.testing.assert_array_equal(back.reshape(images[1].shape), images[1])


def test_what_would_not_come_back_is_refused(tmp_path):
    with pytest.raises(UserError, match="no file or folder"):
        files.read(tmp_path / "none.npy")
    np.savez(tmp_path / "two.npz", y=GREY, labels=np.arange(3))
    with pytest.raises(UserError, match="has the arrays y, labels: expected exactly one array"):
        files.read(tmp_path / "two.npz")
    np.savez(tmp_path / "two.npz", x=GREY, label=np.arange(3))
    with pytest.raises(UserError, match=r"unknown name 'label'.* Did you mean 'labels'"):
        files.read(tmp_path / "two.npz")
    np.save(tmp_path / "real.npy", np.ones((3, 2)))
    with pytest.raises(UserError, match=r"expected integers.*: got float64 \[3, 2\]"):
        files.read(tmp_path / "real.npy")
    np.save(tmp_path / "flat.npy", np.arange(3))
    with pytest.raises(UserError, match=r"the batch axis first: got int64 \[3\]"):
        files.read(tmp_path / "flat.npy")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(UserError, match=r"got '\.txt'"):
        files.read(tmp_path / "x.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"no \.png images"):
        files.read(tmp_path / "folder")
    picture(tmp_path / "folder/a.png", GREY[0])
    for name in (".hidden.png", ".DS_Store", "notes.txt"):
        (tmp_path / "folder" / name).write_text("")
        with pytest.raises(UserError):
            files.read(tmp_path / "folder")
        (tmp_path / "folder" / name).unlink()
    (tmp_path / "folder/link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="holds 'link'"):
        files.read(tmp_path / "folder")
    (tmp_path / "folder/link").unlink()
    (tmp_path / "folder/notes.txt").write_text("")
    with pytest.raises(UserError, match=r"holds 'notes\.txt': expected only \.png images"):
        files.read(tmp_path / "folder")


def test_nothing_is_half_written(tmp_path):
    picture(tmp_path / "in/a.png", GREY[0])
    found = files.read(tmp_path / "in")
    for kind, target in (("images", "out"), ("npy", "out.npy")):
        header = header_of(found, kind=kind)
        with pytest.raises(KeyError), files.writing(tmp_path / target, header) as put:
            put(range(1), found.take(range(1)), found.conditions)
            raise KeyError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    with (
        pytest.raises(UserError, match="exists already"),
        files.writing(tmp_path / "in", header_of(found)),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"are a \.npy file: expected this ending"),
        files.writing(tmp_path / "x.npz", header_of(found, kind="npy")),
    ):
        pass


def test_a_name_cannot_lead_out_of_the_folder(tmp_path):
    picture(tmp_path / "in/a.png", GREY[0])
    found = files.read(tmp_path / "in")
    header = header_of(found, names=("../../a.png",))
    with (
        pytest.raises(UserError, match="leads out of the folder"),
        files.writing(tmp_path / "out", header) as put,
    ):
        put(range(1), found.take(range(1)), found.conditions)
