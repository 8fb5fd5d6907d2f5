"""Compressing files with a trained model, and restoring them exactly.

Decoding is right only if the network gives exactly the numbers of encoding. So a file carries
checksums of the parameters, of the noise levels, and of the output of coder and network for a fixed
input, and that of the chain of few steps if there is one. All are checked before anything is
written.
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
from vdm.run.compression import files, format as file_format, steps
from vdm.run.compression.files import Contents
from vdm.run.compression.format import Block, Header
from vdm.run.compression.outcome import Compressed, Restored
from vdm.run.config import CompressConfig
from vdm.run.data import asked, condition as conditions
from vdm.run.data.condition import Condition
from vdm.run.errors import UserError, as_user_error
from vdm.run.system.files import replacing
from vdm.run.system.progress import Advance, bar
from vdm.run.trained import Trained
from vdm.run.workdir.chains import Kept, params_sum

# Part of the format: with other values nothing could be decoded.
RAMP, SEED = 8, 0
CHUNK_BYTES = 2**26  # of examples whose values are checked together


def compress(
    run: Trained,
    source: Contents,
    out: pathlib.Path,
    config: CompressConfig,
    kept: Kept | None = None,
) -> Compressed:
    """Compress the contents that `files.read` found into one file, with a progress bar.

    With a chain that was kept, its steps take the place of `config.num_steps` even ones.
    Raises UserError for examples that do not have the model's shape and levels, for a model without
    levels or one that needs the class of each example, and for numbers out of range.
    """
    start = time.perf_counter()
    _check(source, run)
    with as_user_error("vdm compress"):
        made, condition = _codec(run, config.num_steps, config.batch_size, config.resolution, kept)
        probe = _probe(made, condition)
    header = Header(
        kind=source.kind,
        names=source.names,
        num_examples=source.size,
        shape=source.shape,
        dtype=source.dtype.str,
        per_block=min(config.per_block, source.size),
        model=params_sum(run.params),
        schedule=_schedule_sum(made),
        probe=probe,
        num_steps=made.lattice().num_steps,
        batch_size=config.batch_size,
        resolution=config.resolution,
        chain=b"" if kept is None else kept.checksum,
    )
    encoded: list[codec.Encoded] = []
    with replacing(out) as temporary, bar("compress", source.size) as advance:
        with temporary.open("wb") as file:
            writer = file_format.Writer(file, header)
            for number in range(file_format.num_blocks(header)):
                rows = file_format.examples_of(header, number)
                x = source.take(rows)
                shown = _within(advance, rows.start, start)
                one = made.encode(x.astype(np.int64), condition.of(len(rows), None), advance=shown)
                writer.block(Block(number, _crc(x, header), one.words))
                encoded.append(one._replace(words=one.words[:0]))
                advance(rows.stop, _line(encoded, made, rows.stop, start))
            writer.end()
        num_bytes = temporary.stat().st_size
    return Compressed(
        num_examples=source.size,
        num_dims=math.prod(run.shape),
        num_bytes=num_bytes,
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
    total = file_format.num_blocks(header)
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
    own = params_sum(run.params)
    if header.model != own:
        raise UserError(
            f"{path} was compressed with another model: expected the fingerprint {own.hex()}, got "
            f"{header.model.hex()}"
        )
    kept = steps.needed(workdir, header.chain, path) if header.chain else None
    with as_user_error(str(path)):
        made, condition = _codec(run, header.num_steps, header.batch_size, header.resolution, kept)
        probe = _probe(made, condition)
    if header.schedule != _schedule_sum(made) or header.probe != probe:
        raise UserError(
            f"{path} cannot be decompressed here: the model computes other numbers on this "
            "machine, or with this version of its libraries, than where it was compressed. "
            "Nothing was written"
        )
    done, restored = 0, []
    with files.writing(out, header) as put, bar("decompress", header.num_examples) as advance:
        for number, where in found.blocks.items():
            rows = file_format.examples_of(header, number)
            block = file_format.read_block(path, where)
            try:
                shown, cond = _within(advance, done, start), condition.of(len(rows), None)
                x = made.decode(block.words, len(rows), cond, advance=shown)
                x = x.astype(header.dtype)
                if _crc(x, header) != block.data_crc:
                    raise DamagedError("the decoded data differ from the encoded data")
            except DamagedError as error:
                if recover:
                    continue
                raise UserError(f"{path}, block {number}: {error}") from error
            put(rows, x)
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
) -> tuple[Codec, Condition]:
    made = run.model.codec(
        stacked.unstack(run.params),  # the same program as ever: files must be decoded by it
        run.shape,
        num_steps=num_steps if kept is None else None,
        chain=None if kept is None else kept.chain,
        batch_size=batch_size,
        ramp=RAMP,
        spacing=2.0**-resolution,
        seed=SEED,
    )
    return made, _condition(run)


def _condition(run: Trained) -> Condition:
    """Return the condition of the examples in a file: none, or not augmented."""
    if conditions.is_optional(run.model.network):
        return Condition()
    if kinds := [asked.WORDS[kind] for kind in run.condition.names if kind != "label"]:
        raise UserError(
            f"this model is conditioned on {' and '.join(kinds)}: expected a model without "
            "conditions, or one that was trained with and without them (train.cond_dropout)"
        )
    if run.condition.num_classes is None:
        return run.condition
    raise UserError(
        f"this model is conditioned on one of {run.condition.num_classes} classes, and a file to "
        "compress has no classes: expected a model without classes, or one that was trained with "
        "and without them (train.cond_dropout)"
    )


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
    return made.fingerprint(condition.of(made.batch_size, None)).to_bytes(4, "little")


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
