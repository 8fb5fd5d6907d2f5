"""Headers of any values and any bytes: read as they are, or one line, and little memory."""

import pathlib
import tempfile
import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import bad_files
from vdm.run.compression import files, format as file_format, header as file_header
from vdm.run.errors import UserError

pytestmark = pytest.mark.usefixtures("unchecked")
FUZZ = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}
FILES = {
    file_header.EVEN: bad_files.compressed(),
    file_header.WITH_CHAIN: bad_files.compressed(bad_files.HEADER._replace(chain=bytes(8))),
    file_header.WITH_CONDITIONS: bad_files.compressed(
        bad_files.HEADER._replace(conditions=(file_header.Part("vector", "<f4", (2,)),))
    ),
}
FIRST_BLOCK = {version: file.index(file_format.BLOCK) for version, file in FILES.items()}
BODY = {version: file[16 : FIRST_BLOCK[version]] for version, file in FILES.items()}
VALUES = {version: msgpack.unpackb(body[1:]) for version, body in BODY.items()}
VERSIONS = st.sampled_from(sorted(FILES))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, 1, 2**31, 2**32, 2**48]),
    st.floats(),
    st.text(max_size=6),
    st.binary(max_size=9),
    st.sampled_from([*file_header.KINDS, "|u1", "<i8", ">u2", "?", "f4", "O", "V9", "M8[s]"]),
)
ANY = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SCALARS, inner, max_size=3),
    max_leaves=8,
)


def headers(version):
    """A version with some of its values replaced, or values of another number."""
    values = VALUES[version]
    return st.one_of(
        st.dictionaries(st.integers(0, len(values) - 1), ANY, min_size=1, max_size=3).map(
            lambda new: (version, [new.get(i, value) for i, value in enumerate(values)])
        ),
        st.tuples(st.just(version), st.lists(ANY, max_size=16)),
    )


def changes(version):
    places = st.integers(0, len(BODY[version]) - 1)
    one = st.tuples(places, st.integers(0, 2), st.binary(max_size=3))
    return st.tuples(st.just(version), st.lists(one, min_size=1, max_size=4))


HEADERS = VERSIONS.flatmap(headers)
CHANGES = VERSIONS.flatmap(changes)


def changed(version, changes):
    """The body with some of its bytes replaced, by fewer or more of them."""
    body = bytearray(BODY[version])
    for place, length, new in changes:
        body[place : place + length] = new
    return bytes(body)


def read(version, body):
    """Read a file with this header, whose checksums are right: the header, or None if refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x.vdm"
        rest = FILES[version][FIRST_BLOCK[version] :]
        path.write_bytes(bad_files.section(file_format.HEADER, body) + rest)
        tracemalloc.start()
        try:
            found = file_format.survey(path)
            file_format.check_promise(path, found.header)
            files.check_target(path.with_suffix(f".{found.header.kind}"), found.header)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 500
            return None
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 2**22
    for number in found.blocks:
        rows = file_header.examples_of(found.header, number)
        assert 0 <= rows.start < rows.stop <= found.header.num_examples
    assert np.dtype(found.header.dtype).kind in "iub"
    return found.header


def check_values(version, values):
    header = read(version, bytes([version]) + msgpack.packb(values))
    if header is not None:  # with other values than these it would be another file
        assert values[1] == b"" or header.names
        values[1], values[3] = header.names, tuple(values[3])
        if version == file_header.WITH_CONDITIONS:
            values[13] = tuple(file_header.Part(k, d, tuple(form)) for k, d, form in values[13])
        assert [*header][: len(values)] == values and len(values) == len(VALUES[version])
        assert (version == file_header.WITH_CONDITIONS) == bool(header.conditions)
        if version != file_header.WITH_CONDITIONS:
            assert (version == file_header.WITH_CHAIN) == bool(header.chain)


@settings(max_examples=300, **FUZZ)
@given(HEADERS)
def test_any_values(values):
    check_values(*values)


@settings(max_examples=300, **FUZZ)
@given(CHANGES)
def test_any_bytes(changes):
    read(changes[0], changed(*changes))


@pytest.mark.long
@settings(max_examples=5_000, **FUZZ)
@given(HEADERS)
def test_many_values(values):
    check_values(*values)


@pytest.mark.long
@settings(max_examples=5_000, **FUZZ)
@given(CHANGES)
def test_many_bytes(changes):
    read(changes[0], changed(*changes))
