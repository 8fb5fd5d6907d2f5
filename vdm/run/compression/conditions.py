"""The conditions of the examples in a compressed file: side information that decoding needs.

They are kept in the user's units and types, so that what comes back is what went in, and what the
model is given follows from them and the scales of the run: elementwise in float64, rounded to
float32, which is the same on every machine. The words of a block begin with

    the number of words that follow of each part, and the part: zlib of the bytes of its rows,
    or of one row where all are the same, filled up with zeros to whole words
"""

import hashlib
import zlib
from collections.abc import Sequence

import numpy as np

from vdm.codec import DamagedError
from vdm.condition import Condition as Given, Conditions
from vdm.run.compression.files import Contents
from vdm.run.compression.header import Part
from vdm.run.data import asked, chosen
from vdm.run.data.beside import Called
from vdm.run.data.condition import KINDS, Condition
from vdm.run.errors import UserError

LEVEL = 9  # of zlib
MOST = 2**62  # bytes that zlib can be asked for


def choose(
    source: Contents,
    options: chosen.Options,
    known: Condition,
    shape: tuple[int, ...],
    *,
    optional: bool,
    unconditional: bool,
) -> tuple[Condition, Conditions]:
    """Return the condition that a model is used with, and its parts for all of the examples.

    They are those of the file, or those that the options ask for. A folder's subfolders are classes
    where the model has as many and no other condition. An `optional` model can be `unconditional`.
    Raises UserError for both, for none where the model needs one, for arrays of a file that the
    model has no use for, and as `fitting`.
    """
    there = _of_source(source, known)
    names = [name for kind, _, name in KINDS if getattr(there, kind) is not None]
    if unconditional:
        if options.first is not None:
            raise UserError(f"{options.first} is given beside --unconditional: expected one")
        if source.beside:
            raise UserError(
                f"{source.path} has {' and '.join(names)}, which would be lost with "
                "--unconditional: expected x alone"
            )
        return Condition(), Conditions()
    if names and options.first is not None:
        raise UserError(
            f"{options.first} is given, and {source.path} has conditions too "
            f"({', '.join(names)}): expected one of them"
        )
    typed = chosen.read(options, known, source.size, shape, f"example of {source.path}")
    if typed is not None:
        return known, typed
    if names:
        fitting(there, known, source.size, shape, _called(source))
        return known, there
    if not known.names:
        return Condition() if optional else known, Conditions()
    needed = asked.kinds(known, chosen.IN_ALL)
    beside = " and ".join(name for kind, _, name in KINDS if kind in known.names)
    without = ", or --unconditional" if optional else ""
    raise UserError(
        f"this model is conditioned on {needed}: expected it as an option, or as {beside} in an "
        f".npz beside x{without}"
    )


def fitting(
    parts: Conditions, known: Condition, size: int, shape: tuple[int, ...], called: Called
) -> Conditions:
    """Return the parts as the run takes them: [n, c] for vectors [n], classes as int32.

    Raises UserError for parts of another kind, form or type than those of the run.
    """
    vector = parts.vector
    if vector is not None and np.ndim(vector) == 1:
        parts = parts._replace(vector=np.asarray(vector)[:, None])
    return asked.checked(asked.parts(parts, known, called), known, size, shape, called)


def given(
    parts: Conditions, known: Condition, size: int, shape: tuple[int, ...], called: Called
) -> Given | None:
    """Return what a model is given of some examples with these parts; raises as `fitting`."""
    if any(part is not None for part in parts):
        parts = fitting(parts, known, size, shape, called)
    return known.of_parts(size, parts)


def forms(parts: Conditions) -> tuple[Part, ...]:
    """Return what a header says of the parts."""
    return tuple(
        Part(kind, part.dtype.str, tuple(part.shape[1:]))
        for kind, part in parts._asdict().items()
        if part is not None
    )


def pack(parts: Conditions) -> np.ndarray:
    """Return the words of a block's conditions; none where there are no parts."""
    found = []
    for part in parts:
        if part is None:
            continue
        rows = np.ascontiguousarray(part)
        same = all(row.tobytes() == rows[0].tobytes() for row in rows[1:])
        packed = zlib.compress((rows[:1] if same else rows).tobytes(), LEVEL)
        words = np.frombuffer(packed + bytes(-len(packed) % 4), "<u4")
        found += [np.array([len(words)], "<u4"), words]
    return np.concatenate(found) if found else np.zeros(0, "<u4")


def unpack(words: np.ndarray, parts: Sequence[Part], size: int) -> tuple[Conditions, np.ndarray]:
    """Return the conditions of `size` examples that a block's words begin with, and the rest.

    Raises DamagedError for words that `pack` does not make.
    """
    found: dict[str, np.ndarray] = {}
    for part in parts:
        num = int(words[0]) if len(words) else 0
        packed, words = words[1 : num + 1], words[num + 1 :]
        dtype = np.dtype(part.dtype)
        row = int(np.prod(part.shape, dtype=np.int64)) * dtype.itemsize
        unpacker = zlib.decompressobj()
        try:
            text = unpacker.decompress(packed.tobytes(), min(size * row + 1, MOST))
        except zlib.error as error:
            raise DamagedError(f"its conditions cannot be read: {error}") from None
        if len(packed) != num or not unpacker.eof or len(text) not in (row, size * row):
            raise DamagedError(f"its conditions ({part.kind}) are of another length")
        values = np.frombuffer(text, dtype).reshape(-1, *part.shape)
        found[part.kind] = np.broadcast_to(values, (size, *part.shape))
    return Conditions(**found), words


def rows_of(parts: Conditions, rows: range) -> Conditions:
    """Return the conditions of some examples."""
    every = (None if part is None else part[rows.start : rows.stop] for part in parts)
    return Conditions(*every)


def to_probe(condition: Condition, size: int, shape: tuple[int, ...]) -> Given | None:
    """Return what a model is given in the check of a machine: fixed numbers around the mean."""
    label = None if condition.num_classes is None else np.arange(size) % condition.num_classes
    vector, field = condition.vector, condition.field
    return condition.of_parts(
        size,
        Conditions(
            label,
            None if vector is None else _pattern((size,), vector.mean, vector.std),
            None if field is None else _pattern((size, *shape[:-1]), field.mean, field.std),
        ),
    )


def run_sum(params: bytes, condition: Condition) -> bytes:
    """Return the fingerprint of parameters together with the scales of a condition, if any."""
    scales = [scale for scale in (condition.vector, condition.field) if scale is not None]
    if not scales:
        return params
    numbers = [np.asarray([scale.mean, scale.std], "<f8").tobytes() for scale in scales]
    return hashlib.sha256(b"".join([params, *numbers])).digest()[: len(params)]


def _of_source(source: Contents, known: Condition) -> Conditions:
    """Return the conditions of a file: its arrays, or classes where these are what is needed."""
    if source.num_folders is None:
        return source.conditions
    fit = known.names == ("label",) and known.num_classes == source.num_folders
    return source.conditions if fit else Conditions()


def _called(source: Contents) -> Called:
    return Called(*(f"{source.path} ({name})" for _, _, name in KINDS))


def _pattern(form: tuple[int, ...], mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    every = np.arange(int(np.prod(form)) * len(mean)).reshape(*form, len(mean))
    return np.asarray(mean) + np.asarray(std) * ((7 * every) % 17 - 8) / 4
