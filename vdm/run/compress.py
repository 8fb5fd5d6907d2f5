"""Compressing files with a trained model, and restoring them exactly.

Decoding is right only if the network gives exactly the numbers of encoding. So a file carries
checksums of the parameters, of the noise levels, and of the output of coder and network for a fixed
input, and that of the chain of few steps if there is one. All are checked before anything is
written. What the examples are conditioned on is in the file, too.
"""

import hashlib
import itertools
import math
import pathlib
import time
import zlib
from collections.abc import Callable

import numpy as np

from vdm import codec
from vdm.codec import Codec, DamagedError
from vdm.networks import stacked
from vdm.run.compression import (
    conditions as side,
    files,
    format as file_format,
    header as headers,
    steps,
)
from vdm.run.compression.files import Contents
from vdm.run.compression.format import Block
from vdm.run.compression.header import Header
from vdm.run.compression.outcome import Compressed, Restored
from vdm.run.config import CompressConfig
from vdm.run.data import asked, chosen, condition as conditions
from vdm.run.data.beside import Called
from vdm.run.data.condition import Condition
from vdm.run.data.stores.names import OWN
from vdm.run.errors import UserError, as_user_error
from vdm.run.run import refuse_sets
from vdm.run.system.files import replacing
from vdm.run.system.progress import Advance, bar
from vdm.run.trained import Trained
from vdm.run.training import checks
from vdm.run.workdir.chains import Kept, params_sum

# Part of the format: with other values nothing could be decoded.
RAMP, SEED = 8, 0
CHUNK_BYTES = 2**26  # of examples whose values are checked together
NONE = chosen.Options()


def compress(
    run: Trained,
    source: Contents,
    out: pathlib.Path,
    config: CompressConfig,
    kept: Kept | None = None,
    asked: chosen.Options = NONE,
    *,
    unconditional: bool = False,
) -> Compressed:
    """Compress the contents that `files.read` found into one file, with a progress bar.

    With a chain that was kept, its steps take the place of `config.num_steps` even ones. A
    conditional model is given the conditions of the contents, or those that are `asked` for; one
    that was trained with and without may be used `unconditional`. Raises UserError for examples
    that do not have the model's shape and levels, for a model without levels, for conditions that
    are missing or that it has no use for, and for numbers out of range.
    """
    start = time.perf_counter()
    refuse_sets(run, "vdm compress")
    _check(source, run)
    checks.check_unconditional(run.model, unconditional)
    condition, parts = side.choose(
        source,
        asked,
        run.condition,
        run.shape,
        optional=conditions.is_optional(run.model.network),
        unconditional=unconditional,
    )
    with as_user_error("vdm compress"):
        made = _codec(run, config.num_steps, config.batch_size, config.resolution, kept)
        probe = _probe(made, condition)
    header = Header(
        kind=source.kind,
        names=source.names,
        num_examples=source.size,
        shape=source.shape,
        dtype=source.dtype.str,
        per_block=min(config.per_block, source.size),
        model=side.run_sum(params_sum(run.params), condition),
        schedule=_schedule_sum(made),
        probe=probe,
        num_steps=made.lattice().num_steps,
        batch_size=config.batch_size,
        resolution=config.resolution,
        chain=b"" if kept is None else kept.checksum,
        conditions=side.forms(parts),
        beside=source.beside,
    )
    called = Called(*(f"{source.path} ({name})" for name in OWN))
    cond_words = 0
    encoded: list[codec.Encoded] = []
    with replacing(out) as temporary, bar("compress", source.size) as advance:
        with temporary.open("wb") as file:
            writer = file_format.Writer(file, header)
            for number in range(headers.num_blocks(header)):
                rows = headers.examples_of(header, number)
                x, own = source.take(rows), side.rows_of(parts, rows)
                shown = _within(advance, rows.start, start)
                cond = side.given(own, condition, len(rows), run.shape, called)
                one = made.encode(x.astype(np.int64), cond, advance=shown)
                words = side.pack(own)
                cond_words += len(words)
                writer.block(Block(number, _crc(x, header), np.concatenate([words, one.words])))
                encoded.append(one._replace(words=one.words[:0]))
                advance(rows.stop, _line(encoded, made, rows.stop, start))
            writer.end()
        num_bytes = temporary.stat().st_size
    return Compressed(
        num_examples=source.size,
        num_dims=math.prod(run.shape),
        num_bytes=num_bytes,
        cond_bytes=4 * cond_words,
        net_bits=sum(one.net_bits for one in encoded),
        seed_bits=sum(one.seed_bits for one in encoded),
        ideal_bits=np.concatenate([one.ideal_bits for one in encoded]),
        bound_bits=np.concatenate([one.bound_bits for one in encoded]),
        seconds=time.perf_counter() - start,
    )


def decompress(
    run: Trained, workdir: pathlib.Path, path: pathlib.Path, out: pathlib.Path, *, recover: bool
) -> Restored:
    """Restore what a file holds, with a progress bar; `workdir` is where the run's chains are.

    With `recover` restore the intact blocks of a damaged file. Raises UserError, before anything is
    written, for a file of another format, damaged (unless `recover`), damaged and with a
    false number of examples, made with another model or a chain that is missing, or on a machine
    that computes other numbers.
    """
    start = time.perf_counter()
    found = file_format.survey(path)
    header = found.header
    total = headers.num_blocks(header)
    if found.damage is not None and not (recover and found.blocks):
        more = "; --recover restores them" if found.blocks else ""
        raise UserError(
            f"{path} is damaged: {found.damage}. {len(found.blocks)} of its {total} blocks are "
            f"intact{more}"
        )
    if found.damage is not None:
        file_format.check_promise(path, header)
    files.check_target(out, header)
    if header.shape != run.shape:
        raise UserError(
            f"{path} was compressed with another model: expected examples of shape "
            f"{list(run.shape)}, got {list(header.shape)}"
        )
    condition = _condition(run, header, path)
    own = side.run_sum(params_sum(run.params), condition)
    if header.model != own:
        raise UserError(
            f"{path} was compressed with another model: expected the fingerprint {own.hex()}, got "
            f"{header.model.hex()}"
        )
    kept = steps.needed(workdir, header.chain, path) if header.chain else None
    with as_user_error(str(path)):
        made = _codec(run, header.num_steps, header.batch_size, header.resolution, kept)
        probe = _probe(made, condition)
    if header.schedule != _schedule_sum(made) or header.probe != probe:
        raise UserError(
            f"{path} cannot be decompressed here: the model computes other numbers on this "
            "machine, or with this version of its libraries, than where it was compressed. "
            "Nothing was written"
        )
    called = Called(*(f"{path} ({name})" for name in OWN))
    done, restored = 0, []
    with files.writing(out, header) as put, bar("decompress", header.num_examples) as advance:
        for number, where in found.blocks.items():
            rows = headers.examples_of(header, number)
            block = file_format.read_block(path, where)
            try:
                shown = _within(advance, done, start)
                parts, words = side.unpack(block.words, header.conditions, len(rows))
                cond = side.given(parts, condition, len(rows), run.shape, called)
                x = made.decode(words, len(rows), cond, advance=shown)
                x = x.astype(header.dtype)
                if _crc(x, header) != block.data_crc:
                    raise DamagedError("the decoded data differ from the encoded data")
            except DamagedError as error:
                if recover:
                    continue
                raise UserError(f"{path}, block {number}: {error}") from error
            put(rows, x, parts)
            restored.append(rows)
            done += len(rows)
        if not restored:
            raise UserError(f"no block of {path} could be restored")
    return Restored(
        header.num_examples, _between(restored, header.num_examples), time.perf_counter() - start
    )


def _between(restored: list[range], total: int) -> tuple[range, ...]:
    """Return the gaps between ranges that are in order."""
    starts = [0, *(rows.stop for rows in restored)]
    stops = [*(rows.start for rows in restored), total]
    gaps = itertools.starmap(range, zip(starts, stops, strict=True))
    return tuple(gap for gap in gaps if gap)


def _codec(
    run: Trained, num_steps: int, batch_size: int, resolution: int, kept: Kept | None
) -> Codec:
    return run.model.codec(
        stacked.unstack(run.params),  # the same program as ever: files must be decoded by it
        run.shape,
        num_steps=num_steps if kept is None else None,
        chain=None if kept is None else kept.chain,
        batch_size=batch_size,
        ramp=RAMP,
        spacing=2.0**-resolution,
        seed=SEED,
    )


def _condition(run: Trained, header: Header, path: pathlib.Path) -> Condition:
    """Return the condition with which a file was compressed; UserError if the run has another."""
    kinds = tuple(part.kind for part in header.conditions)
    if not kinds and conditions.is_optional(run.model.network):
        return Condition()
    if kinds != run.condition.names:
        have, expected = (
            " and ".join(asked.WORDS[k] for k in own) or "no conditions"
            for own in (kinds, run.condition.names)
        )
        raise UserError(
            f"{path} was compressed with another model: expected {expected}, got {have}"
        )
    return run.condition


def _check(source: Contents, run: Trained) -> None:
    """Raise UserError unless the examples have the model's shape and levels."""
    levels = run.model.likelihood.levels
    if levels is None:
        raise UserError(f"only integers can be compressed: this model has {run.model.likelihood}")
    if source.shape != run.shape:
        raise UserError(
            f"the model expects examples of shape {list(run.shape)}: got {source.size} of shape "
            f"{list(source.shape)}"
        )
    rows = max(1, CHUNK_BYTES // (math.prod(run.shape) * source.dtype.itemsize))
    for start in range(0, source.size, rows):
        x = source.take(range(start, min(start + rows, source.size)))
        bad = (x < 0) | (x >= levels)
        if np.any(bad):
            where = [int(i) for i in np.argwhere(bad)[0]]
            raise UserError(
                f"the model expects integers from 0 to {levels - 1}: got {x[tuple(where)]} at "
                f"{[start + where[0], *where[1:]]}"
            )


def _schedule_sum(made: Codec) -> bytes:
    return hashlib.sha256(made.lattice().log_snr.tobytes()).digest()[:4]


def _probe(made: Codec, condition: Condition) -> bytes:
    cond = side.to_probe(condition, made.batch_size, made.shape)
    return made.fingerprint(cond).to_bytes(4, "little")


def _crc(x: np.ndarray, header: Header) -> int:
    return zlib.crc32(np.ascontiguousarray(x, header.dtype).tobytes())


def _within(advance: Advance, before: int, start: float) -> Callable[[int], None]:
    """Return the function that shows the progress within a block, after `before` examples."""

    def shown(done: int) -> None:
        total = before + done
        advance(total, f"{total / (time.perf_counter() - start):.1f} examples/s")

    return shown


def _line(encoded: list[codec.Encoded], made: Codec, done: int, start: float) -> str:
    bits = sum(one.net_bits + one.seed_bits for one in encoded)
    rate = done / (time.perf_counter() - start)
    return f"{bits / (done * np.prod(made.shape)):.3f} bpd  {rate:.1f} examples/s"
