"""What is known of examples and where: read from files, and checked before anything is computed."""

import pathlib
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vdm.run.data import images, whole
from vdm.run.data.stores import numpy_files
from vdm.run.errors import UserError, as_user_error
from vdm.run.run import Run
from vdm.run.scoring import given

PICTURES = ", ".join(images.ENDINGS)


class Known(NamedTuple):
    """Examples [n, *shape], 0 where they are missing, and a mask [n, *shape], True where known."""

    x: np.ndarray
    mask: np.ndarray


def read(run: Run, known: pathlib.Path, mask: pathlib.Path) -> Known:
    """Return what two files hold: a .npy or images, and a .npy; raises UserError as `check`."""
    for path in (known, mask):
        if not path.exists():
            raise UserError(f"no file or folder {str(path)!r}, relative to {path.cwd()}")
    is_pictures = known.is_dir() or known.suffix.lower() in images.ENDINGS
    if is_pictures:
        found = whole.load(known).data
        x = found.take(np.arange(len(found))).x
    else:
        x = _array(known, f"a .npy file, a folder of images or an image ({PICTURES})")
    return check(run, x, _array(mask, "a .npy file"), str(known), str(mask))


def check(
    run: Run, x: ArrayLike, mask: ArrayLike, named: str = "known", mask_named: str = "mask"
) -> Known:
    """Return examples and their mask, one row each; a single one goes with every row of the other.

    The mask is of an example's shape, or without its last axis, the channels, or has one such mask
    for each example; True or 1 is known. Missing entries may hold anything, NaN too. Raises
    UserError for another shape, type or value, for known entries that are not finite or no levels
    of the run, and where all or nothing is known.
    """
    with as_user_error(named):
        x = np.asarray(x)
    with as_user_error(mask_named):
        mask = np.asarray(mask)
    if x.shape == run.shape:
        x = x[None]
    if x.shape[1:] != run.shape or not len(x):
        raise UserError(
            f"{named} must be one example of shape {list(run.shape)} or several, the batch axis "
            f"first: got shape {list(x.shape)}"
        )
    given.check_type(run, x.dtype, named)
    where = _mask(run.shape, mask, mask_named)
    if len({len(x), len(where)} - {1}) > 1:
        raise UserError(
            f"{mask_named} must be one mask or one for each of the {len(x)} examples of {named}: "
            f"got {len(where)}"
        )
    num = max(len(x), len(where))
    x, where = (np.broadcast_to(part, (num, *run.shape)) for part in (x, where))
    if where.all():
        raise UserError(f"{mask_named} says that all is known: nothing is left to fill in")
    if not where.any():
        raise UserError(
            f"{mask_named} says that nothing is known: sample without known entries, which is what "
            "that is"
        )
    _check_values(run, x, where, named)
    kind = np.int32 if run.model.likelihood.levels is not None else np.float32
    return Known(np.where(where, x, 0).astype(kind), where)


def number(known: Known, num: int | None, usual: int) -> int:
    """Return how many samples to draw: as often of each example, by default once.

    `usual` is the default where there is one example. Raises UserError for a number that is not a
    multiple of that of the examples.
    """
    size = len(known.x)
    if num is None:
        return usual if size == 1 else size
    if num % size:
        raise UserError(
            f"num must be a multiple of {size}, the number of examples that are partly known: got "
            f"{num}"
        )
    return num


def _array(path: pathlib.Path, expected: str) -> np.ndarray:
    if path.suffix != ".npy":
        raise UserError(f"expected {expected}: got {str(path)!r}")
    return np.asarray(numpy_files.read_file(path)["x"])


def _mask(shape: tuple[int, ...], mask: np.ndarray, named: str) -> np.ndarray:
    """Return the mask as booleans with a batch axis, of one row or several, and all channels."""
    forms = (shape, shape[:-1]) if len(shape) > 1 else (shape,)
    is_one = mask.shape in forms
    if not is_one and not (mask.size and mask.shape[1:] in forms):
        per_place = f", or {list(forms[1])} for all channels" if len(forms) > 1 else ""
        raise UserError(
            f"{named} must have the shape {list(shape)} of an example{per_place}, or one such mask "
            f"for each example: got shape {list(mask.shape)}"
        )
    if mask.dtype.kind not in "biuf" or np.any(bad := (mask != 0) & (mask != 1)):
        got = mask.flat[int(np.argmax(bad))] if mask.dtype.kind in "biuf" else mask.dtype
        raise UserError(f"{named} must hold 1 where an entry is known and 0 elsewhere: got {got}")
    rows = mask[None] if is_one else mask
    if rows.ndim == len(shape):
        rows = rows[..., None]
    return np.broadcast_to(rows != 0, (len(rows), *shape))


def _check_values(run: Run, x: np.ndarray, where: np.ndarray, named: str) -> None:
    levels = run.model.likelihood.levels
    if levels is None:
        bad = where & ~(np.abs(x) <= np.finfo(np.float32).max)
        expected = "finite numbers (of float32)"
    else:
        bad = where & ((x < 0) | (x >= levels))
        expected = f"integers from 0 to {levels - 1}"
    if bad.any():
        place = [int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape)]
        raise UserError(
            f"{named} must hold {expected} where it is known: got {x[tuple(place)]} at {place}"
        )
