"""Image files with any bytes changed: read as an image of the folder's kind, or one line."""

import io
import pathlib
import struct
import tempfile
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from vdm.run.data import images
from vdm.run.errors import UserError

FUZZ = {"deadline": None, "derandomize": True, "database": None}
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
PNG = b"\x89PNG\r\n\x1a\n"


def encoded(kind, **more):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **more)
    return file.getvalue()


FILES = {
    "png": encoded("PNG"),
    "jpg": encoded("JPEG"),
    "bmp": encoded("BMP"),
    "gif": encoded("GIF"),
    "tiff": encoded("TIFF"),
    "tif": encoded("TIFF", compression="tiff_lzw"),
    "webp": encoded("WEBP", lossless=True),
}
# Where, how many bytes go, and what comes in their place.
CHANGES = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=4
)


def changed(content, changes):
    content = bytearray(content)
    for where, length, new in changes:
        place = int(where * len(content))
        content[place : place + length] = new
    return bytes(content)


def with_checksums(content):
    """A PNG whose chunks have right checksums, whatever is in them."""
    found, at = PNG, len(PNG)
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        body = content[at + 4 : at + 8 + length]
        found += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return found


def read(ending, content, whole=None):
    """Read two good images and this one, as a training does; `whole` is what it may be."""
    images.survey.cache_clear()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name in ("a", "b"):
            (root / f"{name}.{ending}").write_bytes(FILES[ending])
        (root / f"c.{ending}").write_bytes(content)
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                parts = [images.load(folder, split) for split in ("train", "test")]
                x = np.concatenate([part.take(np.arange(len(part))).x for part in parts])
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            return
        finally:
            assert not said
    assert x.shape[1:] == PIXELS.shape[:2] + x.shape[3:] and x.dtype == np.uint8 and len(x) == 3
    if whole is not None:
        for one in x:
            np.testing.assert_array_equal(one, whole)


def check(ending, changes):
    # Only a PNG has checksums, by which other pixels are noticed.
    read(ending, changed(FILES[ending], changes), PIXELS if ending == "png" else None)


def check_png(changes):
    read("png", with_checksums(changed(FILES["png"], changes)))


@pytest.mark.parametrize("ending", FILES)
@settings(max_examples=60, **FUZZ)
@given(CHANGES)
def test_any_bytes(ending, changes):
    check(ending, changes)


@settings(max_examples=200, **FUZZ)
@given(CHANGES)
def test_any_bytes_of_a_png_under_right_checksums(changes):
    check_png(changes)


@pytest.mark.long
@pytest.mark.parametrize("ending", FILES)
@settings(max_examples=2_000, **FUZZ)
@given(CHANGES)
def test_many_bytes(ending, changes):
    check(ending, changes)


@pytest.mark.long
@settings(max_examples=5_000, **FUZZ)
@given(CHANGES)
def test_many_bytes_of_a_png_under_right_checksums(changes):
    check_png(changes)
