"""The compressed file: every change of it is noticed, and what is intact is found."""

import hashlib
import io
import random
import struct
import tracemalloc
import zlib

import msgpack
import numpy as np
import pytest

from vdm.run.compression import format as file_format, header as headers
from vdm.run.compression.format import Block
from vdm.run.compression.header import Header, Part
from vdm.run.errors import UserError

HEADER = Header(
    kind="images",
    names=("a.png", "b/ü.png", "c.png", "d.png", "e.png"),
    num_examples=5,
    shape=(3, 4, 1),
    dtype="uint8",
    per_block=2,
    model=bytes(range(8)),
    schedule=b"abcd",
    probe=b"wxyz",
    num_steps=7,
    batch_size=2,
    resolution=4,
)
CHAIN = HEADER._replace(chain=bytes(range(8, 16)))
PARTS = (Part("label", "|u1", ()), Part("vector", "<f4", (3,)), Part("field", "<f8", (3, 4, 2)))
CONDITIONS = HEADER._replace(conditions=PARTS)
BESIDE = CHAIN._replace(kind="npz", names=("x",), conditions=PARTS[1:2], beside=True)
HEADERS = pytest.mark.parametrize(
    "header",
    [HEADER, CHAIN, CONDITIONS, BESIDE],
    ids=["even", "chain", "conditions", "conditions and chain"],
)
WORDS = np.random.default_rng(0).integers(0, 2**32, 12, dtype=np.uint32)
BLOCKS = [Block(i, 1000 + i, WORDS[i : 2 * i + 3]) for i in range(3)]


def written(header=HEADER, blocks=BLOCKS):
    file = io.BytesIO()
    writer = file_format.Writer(file, header)
    for block in blocks:
        writer.block(block)
    writer.end()
    return file.getvalue()


def survey(tmp_path, data):
    path = tmp_path / "file.vdm"
    path.write_bytes(data)
    found = file_format.survey(path)
    return found, [file_format.read_block(path, where) for where in found.blocks.values()]


def is_same(block, other):
    same = (block.number, block.data_crc) == (other.number, other.data_crc)
    return same and np.array_equal(block.words, other.words)


@HEADERS
def test_what_was_written_is_read(tmp_path, header):
    found, blocks = survey(tmp_path, written(header))
    assert found.header == header and found.damage is None
    assert all(map(is_same, blocks, BLOCKS)) and len(blocks) == headers.num_blocks(HEADER) == 3
    assert [list(headers.examples_of(HEADER, i)) for i in range(3)] == [[0, 1], [2, 3], [4]]
    without = header._replace(names=(), kind="npy", beside=False)
    assert survey(tmp_path, written(without))[0].header == without


@HEADERS
def test_the_layout_is_the_documented_one(header):
    # Read with nothing but struct, zlib, hashlib and msgpack.
    data, at, sections = written(header), 0, []
    while at < len(data):
        mark, length, body_crc, crc = struct.unpack_from("<4sIII", data, at)
        body = data[at + 16 : at + 16 + length]
        assert body_crc == zlib.crc32(body) and crc == zlib.crc32(data[at : at + 12])
        sections.append((mark, body, at))
        at += 16 + length
    assert [mark for mark, _, _ in sections] == [b"\x89VDM", *[b"\x89BLK"] * 3, b"\x89END"]
    version, values = sections[0][1][0], msgpack.unpackb(sections[0][1][1:])
    chain_or_not = (2, 13) if header.chain else (1, 12)
    assert (version, len(values)) == ((3, 15) if header.conditions else chain_or_not)
    assert values[11] == 4 and values[9] == header.num_steps
    if version > 1:
        assert values[12] == header.chain
    if version > 2:
        parts = [[part.kind, part.dtype, list(part.shape)] for part in header.conditions]
        assert values[13:] == [parts, header.beside]
    assert sections[2][1] == struct.pack("<II", 1, 1001) + BLOCKS[1].words.tobytes()
    assert sections[-1][1] == hashlib.sha256(data[: sections[-1][2]]).digest()[:8]


@HEADERS
def test_every_flipped_byte_is_noticed_and_costs_one_block_at_most(tmp_path, header):
    whole = written(header)
    first_block = whole.index(file_format.BLOCK)
    chance = random.Random(0)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        if place < first_block:
            with pytest.raises(UserError):
                survey(tmp_path, bytes(damaged))
            continue
        found, blocks = survey(tmp_path, bytes(damaged))
        assert found.damage is not None and found.header == header
        assert len(blocks) >= 2
        assert all(is_same(block, BLOCKS[block.number]) for block in blocks)


@HEADERS
def test_every_truncation_and_addition_is_noticed(tmp_path, header):
    whole = written(header)
    first_block = whole.index(file_format.BLOCK)
    for length in range(len(whole)):
        if length < first_block:
            with pytest.raises(UserError):
                survey(tmp_path, whole[:length])
        else:
            found, blocks = survey(tmp_path, whole[:length])
            assert found.damage is not None
            assert all(map(is_same, blocks, BLOCKS[: len(blocks)]))
    assert "1 bytes follow its end" in survey(tmp_path, whole + b"\0")[0].damage


@pytest.mark.parametrize("start", [b"", file_format.HEADER])
def test_garbage_is_refused(tmp_path, start):
    chance = random.Random(1)
    for _ in range(500):
        with pytest.raises(UserError, match=r"file\.vdm"):
            survey(tmp_path, start + chance.randbytes(chance.randrange(300)))


def test_blocks_that_are_missing_twice_there_or_too_many_are_noticed(tmp_path):
    assert "block 1 is missing" in survey(tmp_path, written(blocks=BLOCKS[::2]))[0].damage
    found, blocks = survey(tmp_path, written(blocks=[*BLOCKS, BLOCKS[2]._replace(data_crc=7)]))
    assert "block 2 occurs twice" in found.damage and all(map(is_same, blocks, BLOCKS))
    more = [*BLOCKS, Block(3, 0, BLOCKS[0].words)]
    found, blocks = survey(tmp_path, written(blocks=more))
    assert "there is no block 3 in its header" in found.damage and len(blocks) == 3


def test_whole_sections_in_another_order_are_noticed(tmp_path):
    found, blocks = survey(tmp_path, written())
    at = [start - 16 for start, _ in found.blocks.values()]
    whole = written()
    swapped = whole[: at[0]] + whole[at[1] : at[2]] + whole[at[0] : at[1]] + whole[at[2] :]
    found, blocks = survey(tmp_path, swapped)
    assert found.damage == "the checksum of the whole file does not match"
    assert all(map(is_same, blocks, BLOCKS)) and len(blocks) == 3


def test_what_a_header_promises_costs_nothing(tmp_path):
    # A thousand million blocks, of which three are there.
    header = HEADER._replace(kind="npy", names=(), num_examples=2**31, per_block=2)
    found, blocks = survey(tmp_path, written(header))
    assert "block 3 is missing" in found.damage and len(blocks) == 3
    # Marks with lengths up to the end, each of which would have to be read to its end.
    row = b"".join(file_format.BLOCK + struct.pack("<III", 2**20, 0, 0) for _ in range(2**16))
    assert "is damaged" in survey(tmp_path, written()[:-30] + row)[0].damage


def test_another_version_is_named(tmp_path):
    body = b"\x04" + b"whatever comes then"
    start = struct.pack("<4sII", file_format.HEADER, len(body), zlib.crc32(body))
    data = start + struct.pack("<I", zlib.crc32(start)) + body
    with pytest.raises(
        UserError, match="version 4 of the format: this vdm reads the versions 1 to 3"
    ):
        survey(tmp_path, data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "exe"),
        ("num_examples", 0),
        ("per_block", -1),
        ("dtype", "float32"),
        ("shape", (2**20, 2**20)),
        ("shape", (0, 3)),
        ("num_steps", 2.5),
        ("num_steps", 2**62),
        ("batch_size", 2**40),
        ("resolution", -5000),
        ("resolution", 21),
        ("model", "abc"),
        ("probe", b""),
        ("shape", (3, 4, True)),
        ("shape", (3.0, 4, 1)),
        ("names", ("a.png",)),
        ("names", ("a.png",) * 5),
        ("names", (*HEADER.names, "a.png")),
        ("kind", "npz"),
        ("kind", "png"),
        ("chain", bytes(7)),
        ("chain", "8 bytes?"),
        ("chain", True),
        ("conditions", (Part("label", "O", ()),)),
        ("conditions", (Part("labels", "|u1", ()),)),
        ("conditions", (Part("vector", "<f4", (0,)),)),
        ("conditions", (Part("vector", "<f4", (2**20, 2**20)),)),
        ("conditions", PARTS[::-1]),
        ("conditions", PARTS[:1] * 2),
        ("conditions", (("vector", "<f4"),)),
        ("conditions", (("vector", 4, (2,)),)),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path, name, value):
    with pytest.raises(UserError, match=r"the header of .* is not valid"):
        survey(tmp_path, written(HEADER._replace(**{name: value})))
    with pytest.raises(UserError, match=r"the header of .* is not valid"):
        survey(tmp_path, written(CONDITIONS._replace(**{name: value})))


def test_no_conditions_are_not_of_their_version(tmp_path):
    values = msgpack.unpackb(written(CONDITIONS)[17 : written(CONDITIONS).index(b"\x89BLK")])
    for changes in ({13: []}, {14: 1}, {14: True}, {13: None}):
        new = [changes.get(i, value) for i, value in enumerate(values)]
        body = b"\x03" + msgpack.packb(new)
        start = struct.pack("<4sII", file_format.HEADER, len(body), zlib.crc32(body))
        data = start + struct.pack("<I", zlib.crc32(start)) + body
        with pytest.raises(UserError, match=r"the header of .* is not valid"):
            survey(tmp_path, data)


def test_each_version_has_its_own_values(tmp_path):
    for header, version in ((HEADER, 2), (CHAIN, 1), (CHAIN, 3), (CONDITIONS, 2)):
        data = bytearray(written(header))
        data[16] = version  # and the two checksums of it
        length = struct.unpack_from("<I", data, 4)[0]
        struct.pack_into("<I", data, 8, zlib.crc32(data[16 : 16 + length]))
        struct.pack_into("<I", data, 12, zlib.crc32(data[:12]))
        with pytest.raises(UserError, match=r"the header of .* is not valid"):
            survey(tmp_path, bytes(data))


def test_a_file_that_is_not_there_or_empty_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        file_format.survey(tmp_path / "none")
    with pytest.raises(UserError, match="not written by `vdm compress`"):
        survey(tmp_path, b"")


def test_names_take_memory_only_where_they_are_as_many_as_the_examples(tmp_path, monkeypatch):
    """261 kB of packed names would take 4.6 GB when they are split."""
    header = HEADER._replace(kind="images", num_examples=5, names=("a",) * 2_000_000)
    path = tmp_path / "x.vdm"
    with path.open("wb") as file:
        file_format.Writer(file, header).end()
    tracemalloc.start()
    with pytest.raises(UserError, match=r"is not valid .*(names take more|it has .* names)"):
        file_format.survey(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
