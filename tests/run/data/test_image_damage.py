"""Damaged, disguised and unusual image files: read as what they are, or refused."""

import os

import numpy as np
import pytest
from PIL import Image

from vdm.run.data import images, picture
from vdm.run.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (32, 32, 3), np.uint8)


def folder_of(root, **files):
    """A folder of two plain images and some more."""
    for name in ("a", "b"):
        Image.fromarray(PIXELS).save(root / f"{name}.png")
    for name, content in files.items():
        (root / f"{name}.png").write_bytes(content)
    images.survey.cache_clear()
    return root


def read(root):
    images.survey.cache_clear()
    return [images.load(str(root), split).x for split in ("train", "test")]


def test_a_flipped_bit_of_a_png_is_refused_or_changes_nothing(tmp_path):
    """Every bit of a small file; without checksums some of them give other pixels."""
    row = np.arange(32, dtype=np.uint8)
    smooth = np.stack(np.broadcast_arrays(row[:, None] * 8, row * 8, 4 * (row[:, None] + row)), -1)
    path = tmp_path / "x.png"
    Image.fromarray(smooth).save(path)
    whole = path.read_bytes()
    folder = images.Folder({}, None, smooth.shape, np.dtype(np.uint8))
    refused = 0
    for where in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[where] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                x = images.decode(path, folder)
            except UserError as error:
                assert "\n" not in str(error)
                refused += 1
            else:
                np.testing.assert_array_equal(x, smooth)
    assert refused > 4 * len(whole)


def test_a_program_in_an_image_file_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    ran = tmp_path / "ran"
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match=r"cannot read the image .*p\.png"):
        read(folder_of(tmp_path / "x", p=script))
    assert not ran.exists()


def test_a_palette_of_greys_is_one_channel(tmp_path):
    grey = PIXELS[..., 0]
    for name in ("a", "b"):
        image = Image.fromarray(grey).convert("P")
        image.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
        image.save(tmp_path / f"{name}.png")
    for x in read(tmp_path):
        np.testing.assert_array_equal(x[0, ..., 0], grey)
        assert x.shape == (1, 32, 32, 1)


def test_a_palette_of_greys_among_colours_is_colour(tmp_path):
    grey, colour = Image.fromarray(PIXELS[..., 0]).convert("P"), Image.fromarray(PIXELS)
    grey.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
    grey.save(tmp_path / "a.png")
    colour.save(tmp_path / "b.png")
    colour.quantize(16).save(tmp_path / "c.png")
    whole = np.concatenate(read(tmp_path))
    assert whole.shape == (3, 32, 32, 3)
    assert any(np.array_equal(x, np.repeat(PIXELS[..., :1], 3, axis=-1)) for x in whole)
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "d.png")
    with pytest.raises(UserError, match="expected one size and one kind"):
        read(tmp_path)


def test_a_damaged_palette_image_is_named(tmp_path):
    for name in ("a", "b"):
        Image.fromarray(PIXELS).quantize(16).save(tmp_path / f"{name}.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:-40])
    with pytest.raises(UserError, match=r"cannot read the image .*a\.png"):
        read(tmp_path)


@pytest.mark.parametrize("upright", [0, 1])
def test_an_upright_image_is_read(tmp_path, upright):
    exif = Image.Exif()
    exif[picture.ORIENTATION] = upright
    for name in ("a", "b"):
        Image.fromarray(PIXELS).save(tmp_path / f"{name}.jpg", exif=exif)
    assert sum(map(len, read(tmp_path))) == 2


def test_an_image_that_has_to_be_turned_is_refused(tmp_path):
    folder_of(tmp_path)
    exif = Image.Exif()
    exif[picture.ORIENTATION] = 6
    Image.fromarray(PIXELS).save(tmp_path / "c.jpg", exif=exif)
    with pytest.raises(UserError, match=r"c\.jpg is an image of the kind RGB to be turned"):
        read(tmp_path)


def test_a_name_that_is_not_utf_8_is_named(tmp_path):
    folder_of(tmp_path)
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff\xfe.png")
    with pytest.raises(UserError, match=r"is not UTF-8: .*\\udcff"):
        read(tmp_path)


def test_a_pipe_among_images_is_not_waited_for(tmp_path):
    folder_of(tmp_path)
    os.mkfifo(tmp_path / "c.png")
    with pytest.raises(UserError, match=r"c\.png is not a file"):
        read(tmp_path)


def test_a_fan_of_links_is_refused_at_once(tmp_path):
    folder_of(tmp_path)
    for i in range(12):
        (tmp_path / f"d{i}").mkdir()
        for j in range(12):
            (tmp_path / f"d{i}/to_{j}").symlink_to(tmp_path / f"d{j}")
    with pytest.raises(UserError, match="is behind more than 4 links"):
        read(tmp_path)


def test_deep_folders_are_read(tmp_path):
    folder_of(tmp_path)
    deep = tmp_path.joinpath(*["d"] * 300)
    deep.mkdir(parents=True)
    Image.fromarray(PIXELS).save(deep / "c.png")
    assert sum(map(len, read(tmp_path))) == 3
