"""What a program takes of each device: memory, bytes moved, communication, time at best."""

import re
from typing import NamedTuple

import jax

from vdm.run.compiled import text
from vdm.run.compiled.chips import Chip
from vdm.run.compiled.text import Collective

# "Used 18.63G of 15.75G hbm", or "temporaries (19.07G) exceeds available HBM (15.75G)".
REFUSAL = re.compile(
    r"([\d.]+)([KMG])(?: of |\) exceeds available HBM \()([\d.]+)([KMG])", re.IGNORECASE
)


class DoesNotFit(NamedTuple):
    """A compiler's refusal: the program needs more memory than a device has; bytes, if said."""

    needed: float | None
    there: float | None


class Cost(NamedTuple):
    """One device's share of a program, by its compiler's own account; bytes, but for seconds."""

    held: int  # arguments: state and batch
    work: int  # beside the arguments, results in their place
    code: int
    moved: int
    collectives: tuple[Collective, ...]
    # The compiler's own estimate; None where it makes none, or has counted one round of a loop.
    seconds: float | None


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled | DoesNotFit:
    """Return the compiled program, or the compiler's refusal for want of memory."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        said = REFUSAL.search(str(error))
        if said is None:
            return DoesNotFit(None, None)
        scale = {"K": 2**10, "M": 2**20, "G": 2**30}
        return DoesNotFit(float(said[1]) * scale[said[2]], float(said[3]) * scale[said[4]])


def of(program: jax.stages.Compiled) -> Cost | None:
    """Return what a compiled program takes; None where its backend does not say."""
    memory, counted = program.memory_analysis(), program.cost_analysis() or {}
    if memory is None:
        return None
    parsed = text.parse(program.as_text() or "")
    seconds = counted.get("optimal_seconds")
    return Cost(
        held=memory.argument_size_in_bytes,
        work=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        moved=text.num_bytes(parsed),
        collectives=tuple(text.collectives(parsed)),
        seconds=None if not seconds or seconds < 0 or text.has_loops(parsed) else float(seconds),
    )


def best_seconds(flops: float, moved: float, chip: Chip) -> float:
    """Return the seconds that a device needs at least: by its arithmetic or by its memory.

    The roofline of Williams et al. (2009): neither is ever faster than its peak.
    """
    return max(flops / chip.flops, moved / chip.bandwidth)
