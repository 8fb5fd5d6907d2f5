"""The file of scores: a row for each example, as CSV or as arrays of the same names."""

import csv
import pathlib

import numpy as np

from vdm.run.errors import UserError
from vdm.run.evaluation.record import TERMS
from vdm.run.scoring.ranks import Ranks
from vdm.run.scoring.scores import Scores
from vdm.run.system.files import check_is_file, replacing

ENDINGS = (".csv", ".npz")


def check_target(path: pathlib.Path, source: pathlib.Path) -> None:
    """Raise UserError for another ending, and for the file that is to be scored."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"scores are written as .csv or .npz: got --out={path}")
    check_is_file(path)
    if path.exists() and source.exists() and path.samefile(source):
        raise UserError(f"--out is the same file as IN, {path}: expected another --out")


def columns(
    scores: Scores, names: tuple[str, ...] | None, ranks: list[Ranks]
) -> dict[str, np.ndarray]:
    """Return the columns by name: what names an example, its bits, their error, terms and ranks."""
    size = len(scores.bpd)
    found = {"index": np.arange(size)} if names is None else {"name": np.array(names)}
    found |= {"bpd": scores.bpd, "error": scores.error}
    if scores.terms is not None:
        found |= dict(zip(TERMS, scores.terms.T, strict=True))
    return found | {f"rank_{one.split}": one.ranks for one in ranks}


def write(path: pathlib.Path, columns: dict[str, np.ndarray]) -> None:
    """Write the columns, whole or not at all; in CSV an error that is not known is left empty."""
    with replacing(path) as temporary:
        if path.suffix.lower() == ".npz":
            np.savez(temporary, **columns)  # type: ignore[arg-type]
            return
        with temporary.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(columns)
            for row in zip(*(column.tolist() for column in columns.values()), strict=True):
                rows.writerow("" if value != value else value for value in row)
