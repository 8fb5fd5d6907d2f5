"""The compressed file: a header, independent blocks, and a checksum of the whole.

A file is a row of sections, each a mark of four bytes, the length of its body, a CRC-32 of the
body, a CRC-32 of these twelve bytes, and the body; numbers are unsigned, of 32 bits, the lowest
byte first.

    89 56 44 4D  header  the version of the format (one byte), then a msgpack of `Header`'s values;
                         version 1 is for files with neither chain nor conditions, version 2 for
                         those without conditions, and the values of these are left out
    89 42 4C 4B  block   its number, a CRC-32 of the data in it, in version 3 the conditions of its
                         examples (`vdm.run.compression.conditions`), and the coder's words
    89 45 4E 44  end     the first 8 bytes of the SHA-256 of everything before it

Where a section is damaged, the next mark of a block is searched for, so the intact blocks after it
are found. Whatever lengths a file claims, reading takes no more memory than the names, one block
and a few bytes for each block present, and its time grows only with the file's length.
"""

import hashlib
import io
import itertools
import math
import mmap
import pathlib
import struct
import zlib
from typing import NamedTuple

import numpy as np

from vdm.run.compression import header as headers
from vdm.run.compression.header import Header, num_blocks
from vdm.run.errors import UserError
from vdm.run.system.files import check_is_file

HEADER, BLOCK, END = b"\x89VDM", b"\x89BLK", b"\x89END"
_START = struct.Struct("<4sII")  # mark, length of the body, CRC-32 of the body
_FRAME = struct.Struct("<4sIII")  # and a CRC-32 of these
_BLOCK = struct.Struct("<II")  # number of the block, CRC-32 of its data
_DIGEST_BYTES = 8
LEAST_BITS = 0.001  # of a dimension


class Block(NamedTuple):
    """Examples that are coded together, independently of all others."""

    number: int
    data_crc: int
    words: np.ndarray  # uint32


class Survey(NamedTuple):
    """The intact parts of a file: its header, where its blocks are, and the first damage."""

    header: Header
    blocks: dict[int, tuple[int, int]]  # by number: where the body is, and its length
    damage: str | None


class Writer:
    """Writes the sections of one file, in order."""

    def __init__(self, file: io.BufferedIOBase, header: Header):
        self._file, self._sum = file, hashlib.sha256()
        self._section(HEADER, headers.pack(header))

    def block(self, block: Block) -> None:
        """Write one block; their numbers are 0, 1, 2, ... in this order."""
        words = np.ascontiguousarray(block.words, "<u4").tobytes()
        self._section(BLOCK, _BLOCK.pack(block.number, block.data_crc) + words)

    def end(self) -> None:
        """Write the checksum of everything written so far."""
        self._section(END, self._sum.digest()[:_DIGEST_BYTES])

    def _section(self, mark: bytes, body: bytes) -> None:
        start = _START.pack(mark, len(body), zlib.crc32(body))
        whole = start + struct.pack("<I", zlib.crc32(start)) + body
        self._file.write(whole)
        self._sum.update(whole)


def survey(path: pathlib.Path) -> Survey:
    """Look through a file; raises UserError if it has another format, or its header is damaged."""
    with _open(path) as file, _map(file, path) as data:
        if data[: len(HEADER)] != HEADER:
            raise UserError(f"{path} was not written by `vdm compress` (other first bytes)")
        found = _section_at(data, 0)
        if found is None:
            raise UserError(f"the header of {path} is damaged; nothing can be read without it")
        header, at = headers.read(data[_FRAME.size : found], path), found
        blocks: dict[int, tuple[int, int]] = {}
        damage, ended = None, False
        while at < len(data) and not ended:
            end = _section_at(data, at)
            if end is None:
                damage = damage or f"the section at byte {at:,} is damaged"
                at = data.find(BLOCK, at + 1)
                if at < 0:
                    break
                continue
            body = at + _FRAME.size
            if data[at : at + 4] == BLOCK:
                number, _ = _BLOCK.unpack_from(data, body)
                if number in blocks:
                    damage = damage or f"block {number} occurs twice"
                blocks.setdefault(number, (body, end - body))
            elif data[at : at + 4] == END:
                ended = True
                if data[body:end] != _sha256(data, at)[:_DIGEST_BYTES]:
                    damage = damage or "the checksum of the whole file does not match"
            at = end
        if not ended:
            damage = damage or "its end is missing"
        elif at < len(data):
            damage = damage or f"{len(data) - at:,} bytes follow its end"
        total = num_blocks(header)
        if surplus := [number for number in blocks if number >= total]:
            damage = damage or f"there is no block {surplus[0]} in its header"
        blocks = {number: blocks[number] for number in sorted(blocks) if number < total}
        if len(blocks) < total:
            first = next(number for number in itertools.count() if number not in blocks)
            damage = damage or f"block {first} is missing"
        return Survey(header, blocks, damage)


def check_promise(path: pathlib.Path, header: Header) -> None:
    """Raise UserError where a header promises far more examples than its file could hold.

    What is lost of a damaged file is filled with zeros, and a false number would be a file without
    end. Much may be lost: a real model needs hundreds of times LEAST_BITS.
    """
    size = path.stat().st_size
    most = int(8 * size / (LEAST_BITS * math.prod(header.shape)))
    if header.num_examples > most:
        raise UserError(
            f"{path} cannot be recovered: its header says {header.num_examples:,} examples, and "
            f"{size:,} bytes could hold {most:,} at most"
        )


def read_block(path: pathlib.Path, where: tuple[int, int]) -> Block:
    """Return the block whose body `survey` has found there."""
    start, length = where
    with _open(path) as file:
        file.seek(start)
        body = file.read(length)
    number, data_crc = _BLOCK.unpack_from(body)
    return Block(number, data_crc, np.frombuffer(body, "<u4", offset=_BLOCK.size))


def _open(path: pathlib.Path) -> io.BufferedReader:
    check_is_file(path)
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _map(file: io.BufferedReader, path: pathlib.Path) -> mmap.mmap:
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an empty file, a pipe
        raise UserError(f"{path} was not written by `vdm compress`: {error}") from error


def _section_at(data: mmap.mmap, at: int) -> int | None:
    """Return where the section at a place ends, None unless it is whole and its CRC is right."""
    if at + _FRAME.size > len(data):
        return None
    mark, length, body_crc, crc = _FRAME.unpack_from(data, at)
    end = at + _FRAME.size + length
    # First, so that a false length costs nothing.
    if crc != zlib.crc32(data[at : at + _START.size]):
        return None
    if mark not in (HEADER, BLOCK, END) or end > len(data):
        return None
    if mark == BLOCK and (length < _BLOCK.size or length % 4):
        return None
    with memoryview(data) as view, view[at + _FRAME.size : end] as body:
        return end if zlib.crc32(body) == body_crc else None


def _sha256(data: mmap.mmap, end: int) -> bytes:
    with memoryview(data) as view, view[:end] as part:
        return hashlib.sha256(part).digest()
