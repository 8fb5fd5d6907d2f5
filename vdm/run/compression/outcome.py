"""The result of compressing: how many bytes, their parts, and what was lost."""

import math
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

MIN_WIDTH = 100


class Compressed(NamedTuple):
    """How many bytes a file takes, and their parts in bits."""

    num_examples: int
    num_dims: int  # of one example
    num_bytes: int
    cond_bytes: int  # of them the conditions', in the blocks
    net_bits: float  # of the coder, without its seed
    seed_bits: float
    ideal_bits: np.ndarray  # [n], of the path that was coded
    bound_bits: np.ndarray  # [n], whose mean is the bound's
    seconds: float


class Restored(NamedTuple):
    """How many examples a file has, and which of them could not be restored."""

    num_examples: int
    missing: tuple[range, ...]
    seconds: float


def show_compressed(made: Compressed) -> None:
    """Print what a compressed file takes, in bits per dimension, and what the model predicts.

    Conditions are side information: their bytes have a row of their own.
    """
    total = made.num_examples * made.num_dims
    bits = 8 * made.num_bytes
    rest = bits - made.net_bits - made.seed_bits - 8 * made.cond_bytes
    table = Table(title=f"{made.num_examples} examples, {made.num_bytes:,} bytes")
    for heading in ("bits per dimension", ""):
        table.add_column(heading, justify="left" if heading else "right", no_wrap=True)
    rows = {
        "the file": f"{bits / total:.4f}",
        "of which the coder's bits": f"{made.net_bits / total:.4f}",
        "    start bits": f"{made.seed_bits / total:.4f}",
        "    header and checksums": f"{rest / total:.4f}",
    }
    if made.cond_bytes:
        rows[f"    conditions ({made.cond_bytes:,} bytes)"] = f"{8 * made.cond_bytes / total:.4f}"
    rows |= {
        "ideal code of the same latents": _with_error(made.ideal_bits / made.num_dims),
        "bound with the same number of steps": _with_error(made.bound_bits / made.num_dims),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console = Console(width=max(Console().width, MIN_WIDTH))
    console.print(table)
    console.print(
        f"{made.seconds:.1f} s, {made.num_examples / made.seconds:.1f} examples/s", highlight=False
    )


def _with_error(each: np.ndarray) -> str:
    """Return mean ± standard error, where there are at least two values."""
    if len(each) < 2:
        return f"{each.mean():.4f}"
    return f"{each.mean():.4f} ± {each.std(ddof=1) / math.sqrt(len(each)):.4f}"
