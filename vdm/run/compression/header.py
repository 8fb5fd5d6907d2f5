"""The header of a compressed file: what holds for the whole of it, and what it may say."""

import math
import pathlib
import zlib
from typing import NamedTuple

import msgpack
import numpy as np

from vdm.run.config import CompressConfig, fields
from vdm.run.data.condition import KINDS as CONDITIONS
from vdm.run.errors import UserError

KINDS = ("npy", "npz", "png", "images")
_CHAIN_BYTES = 8
_MAX_DIMS = 2**31  # of one example
_MAX_NAMES = 2**28  # bytes of all names together
_MAX_RATIO = 256  # to which names of one long folder may have been compressed


class Part(NamedTuple):
    """A part of the examples' conditions: of which kind, its type and its shape for one of them."""

    kind: str  # a part of `vdm.condition.Conditions`
    dtype: str
    shape: tuple[int, ...]


class Header(NamedTuple):
    """What holds for the whole file."""

    kind: str  # what was compressed, and what is written back
    names: tuple[str, ...]  # of the files of a folder, or of the array of an .npz
    num_examples: int
    shape: tuple[int, ...]  # of one example
    dtype: str
    per_block: int  # examples; the last block may have fewer
    model: bytes  # the first 8 of the SHA-256 of all parameters
    schedule: bytes  # the first 4 of the SHA-256 of the chain's noise levels
    probe: bytes  # the 4 of `Codec.fingerprint` on the machine that wrote
    num_steps: int
    batch_size: int  # examples in one call of the network
    resolution: int  # the lattices' spacing is 2^-resolution of a step's standard deviation
    chain: bytes = b""  # the checksum of the chain of few steps; empty for even steps
    conditions: tuple[Part, ...] = ()  # that the model is given, in the order of `Conditions`
    beside: bool = False  # whether these are arrays of the .npz, and are written back


EVEN, WITH_CHAIN, WITH_CONDITIONS = 1, 2, 3
# The values in the header of each version of the format.
VERSIONS = {
    EVEN: Header._fields[:-3],
    WITH_CHAIN: Header._fields[:-2],
    WITH_CONDITIONS: Header._fields,
}


def version_of(header: Header) -> int:
    """Return the version of the format: the oldest that has all that the header says."""
    if header.conditions:
        return WITH_CONDITIONS
    return WITH_CHAIN if header.chain else EVEN


def pack(header: Header) -> bytes:
    """Return the bytes of a header: its version and its values."""
    values = {**header._asdict(), "names": _pack_names(header.names)}
    version = version_of(header)
    return bytes([version]) + bytes(msgpack.packb([values[name] for name in VERSIONS[version]]))


def read(body: bytes, path: pathlib.Path) -> Header:
    """Return the header of these bytes; raises UserError for what `vdm compress` does not write."""
    version = body[0] if body else None
    if version not in VERSIONS:
        raise UserError(
            f"{path} has version {version or 'none'} of the format: this vdm reads the versions "
            f"{EVEN} to {WITH_CONDITIONS}"
        )
    try:
        values = dict(zip(VERSIONS[version], msgpack.unpackb(body[1:]), strict=True))
        count = {"images": values["num_examples"], "npz": 1}.get(values["kind"], 0)
        names, shape = _unpack_names(values["names"], count), tuple(values["shape"])
        given = values.get("conditions", ())
        parts = tuple(Part(kind, dtype, tuple(form)) for kind, dtype, form in given)
        values |= {"names": names, "shape": shape, "conditions": parts}
        header = Header(**values)
        _check(header, version)
    # Whatever is wrong: its checksum is right, so another program wrote it.
    except Exception as error:
        raise UserError(f"the header of {path} is not valid ({error})") from error
    return header


def num_blocks(header: Header) -> int:
    """Return how many blocks a file with this header has."""
    return -(-header.num_examples // header.per_block)


def examples_of(header: Header, number: int) -> range:
    """Return which examples are in a block."""
    start = number * header.per_block
    return range(start, min(start + header.per_block, header.num_examples))


def _pack_names(names: tuple[str, ...]) -> bytes:
    return zlib.compress("\0".join(names).encode(errors="surrogateescape")) if names else b""


def _unpack_names(packed: object, count: int) -> tuple[str, ...]:
    """Return the names; raises ValueError unless there are `count`, before they take memory."""
    if type(packed) is not bytes:
        raise ValueError(f"its names are of type {type(packed).__name__}, expected bytes")
    if not packed:
        return ()
    most = min(_MAX_NAMES, _MAX_RATIO * len(packed))
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(packed, most)
    if unpacker.unconsumed_tail:
        raise ValueError(f"its names take more than {most:,} bytes")
    if (there := text.count(b"\0") + 1) != count:
        raise ValueError(f"it has {there:,} names, expected {count:,}")
    return tuple(text.decode(errors="surrogateescape").split("\0"))


def _whole(value: object, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _is_shape(shape: tuple[object, ...]) -> bool:
    sides = [side for side in shape if type(side) is int and 1 <= side <= _MAX_DIMS]
    return len(sides) == len(shape) and math.prod(sides) <= _MAX_DIMS


def _are_conditions(parts: tuple[Part, ...]) -> bool:
    """Return whether these are parts of conditions, each at most once and in their order."""
    known = [kind for kind, *_ in CONDITIONS]
    there = [known.index(part.kind) for part in parts]
    forms = [np.dtype(part.dtype).kind in "fiub" and _is_shape(part.shape) for part in parts]
    return there == sorted(set(there)) and all(forms)


def _check(header: Header, version: int) -> None:
    """Raise ValueError for values that `vdm compress` does not write into this version."""
    names, examples = len(set(header.names)), header.num_examples
    sums = (header.model, 8), (header.schedule, 4), (header.probe, 4)
    # Whether there is a chain is a setting; which one, a value of the header.
    settings = {field.name: field for field in fields.of(CompressConfig) if field.name != "chain"}
    chain_bytes = {EVEN: (0,), WITH_CHAIN: (_CHAIN_BYTES,)}.get(version, (0, _CHAIN_BYTES))
    with_conditions = version == WITH_CONDITIONS
    right = {
        **{name: fields.takes(field, getattr(header, name)) for name, field in settings.items()},
        "kind": header.kind in KINDS,
        "num_examples": _whole(examples, 2**48) and (header.kind != "png" or examples == 1),
        "shape": _is_shape(header.shape),
        "dtype": np.dtype(header.dtype).kind in "iub",
        "names": names == len(header.names)
        and names == {"images": examples, "npz": 1}.get(header.kind, 0),
        "model": all(type(part) is bytes and len(part) == size for part, size in sums),
        "chain": type(header.chain) is bytes and len(header.chain) in chain_bytes,
        "conditions": _are_conditions(header.conditions)
        and bool(header.conditions) == with_conditions,
        "beside": type(header.beside) is bool and (header.kind == "npz" or not header.beside),
    }
    for name, fine in right.items():
        if not fine:
            raise ValueError(f"{name} is {getattr(header, name)!r}"[:80])
