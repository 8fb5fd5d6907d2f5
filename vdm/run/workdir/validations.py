"""The validations of a run: the bound of every example of its validation split, each time.

Kept for every example, so that two validations, which have the same noise, are compared example by
example. The file is validation.npz.
"""

import pathlib
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vdm.run.errors import UserError
from vdm.run.system.files import replacing

VALIDATIONS_FILE = "validation.npz"
DAMAGE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)


class Validations(NamedTuple):
    """Bits per dimension of n examples at k steps, with averaged and with raw parameters."""

    steps: Int[np.ndarray, " k"]
    ema: Float[np.ndarray, "k n"]
    raw: Float[np.ndarray, "k n"]

    @property
    def best(self) -> int:
        """The position of the validation with the least mean, by the averaged parameters."""
        return int(np.argmin(self.ema.mean(1)))

    @property
    def since_best(self) -> int:
        """The number of validations after the best one; 0 where there are none at all."""
        return len(self.steps) - 1 - self.best if len(self.steps) else 0

    def until(self, step: int) -> "Validations":
        """Return those up to a step."""
        return Validations(*(part[self.steps <= step] for part in self))

    def and_then(self, step: int, ema: np.ndarray, raw: np.ndarray) -> "Validations":
        """Return them with one more, of a later step."""
        return Validations(
            np.append(self.steps, step),
            np.concatenate([self.ema, ema[None]]),
            np.concatenate([self.raw, raw[None]]),
        )

    def numbers(self) -> dict[str, float]:
        """Return the last validation as metrics, the change since the best one before included."""
        last = self.ema[-1]
        found = {
            "validation": float(last.mean()),
            "validation_raw": float(self.raw[-1].mean()),
            **_error("validation_sem", last),
        }
        if len(self.steps) > 1:
            before = self.until(int(self.steps[-1]) - 1)
            change = last - before.ema[before.best]
            found |= {"validation_change": float(change.mean())}
            found |= _error("validation_change_sem", change)
        return found


def none(num_examples: int) -> Validations:
    """Return no validations of so many examples."""
    nothing = np.zeros((0, num_examples))
    return Validations(np.zeros(0, np.int64), nothing, nothing)


def read(workdir: pathlib.Path, num_examples: int) -> Validations:
    """Return what a workdir holds; raises UserError for a file that is no record of them."""
    path = workdir / VALIDATIONS_FILE
    if not path.exists():
        return none(num_examples)
    try:
        # Opened here: of a damaged file np.load would leave it open.
        with path.open("rb") as file, np.load(file) as found:
            parts = Validations(*(found[name] for name in Validations._fields))
    except DAMAGE as error:
        raise UserError(f"{path} is damaged: move it away to start the validations anew") from error
    shape = (len(parts.steps), num_examples)
    numbers = parts.ema.dtype.kind == "f" and np.isfinite(parts.ema).all()
    if parts.ema.shape != shape or parts.raw.shape != shape or not numbers:
        raise UserError(
            f"{path} must hold numbers of {num_examples} examples: move it away to start the "
            "validations anew"
        )
    return parts


def write(workdir: pathlib.Path, validations: Validations) -> None:
    """Write the validations into a workdir."""
    with replacing(workdir / VALIDATIONS_FILE) as temporary:
        np.savez(temporary, **validations._asdict())


def _error(name: str, values: np.ndarray) -> dict[str, float]:
    """Return the standard error of a mean over examples, by name; of one example there is none."""
    if len(values) < 2:
        return {}
    return {name: float(values.std(ddof=1) / np.sqrt(len(values)))}
