"""Space on the disk: a run that could not keep its checkpoints is an error before it starts."""

import math
import pathlib
import shutil

import jax

from vdm.run.errors import UserError


def num_bytes(tree: object) -> int:
    """Return the size of a tree of arrays, or of their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check_room(folder: pathlib.Path, size: int, kept: int) -> None:
    """Raise UserError unless there is space for `kept` checkpoints of a size and one being written.

    What the folder already holds counts as space: new checkpoints replace old ones.
    """
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    room = shutil.disk_usage(folder).free + held
    need = size * (kept + 1)
    if need > room:
        raise UserError(
            f"{folder} has {readable(room)} free, but {kept + 1} checkpoints of {readable(size)} "
            f"take {readable(need)} (train.checkpoints_kept is {kept}, and one more is written "
            "beside them): free some space, keep fewer or use another --workdir"
        )


def readable(size: int) -> str:
    """Return a number of bytes in kB, MB or GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
