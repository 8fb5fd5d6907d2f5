"""Tables of numbers in CSV files: a header, and a row for each example."""

import csv
import pathlib
from collections.abc import Sequence

import numpy as np

from vdm.run.errors import UserError
from vdm.run.system.files import check_is_file


def read(path: pathlib.Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a file, all of one length.

    Raises UserError for a file that cannot be read, has no row or a row of another length, and for
    a name that is there twice.
    """
    check_is_file(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a mark
            rows = [[word.strip() for word in row] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path} as CSV: {error}") from error
    if len(rows) < 2:
        raise UserError(f"{path} has no rows: expected a header and a row for each example")
    header, *rest = rows
    if all(_is_number(word) for word in header):
        raise UserError(f"{path} has no header: its first row is numbers, expected names")
    if twice := [name for name in header if header.count(name) > 1]:
        raise UserError(f"{path} has the column {twice[0]!r} twice")
    for number, row in enumerate(rest, 1):
        if len(row) != len(header):
            raise UserError(
                f"{path}: row {number} has {len(row)} entries, its header {len(header)}"
            )
    return header, rest


def columns(
    header: Sequence[str], other: str, names: Sequence[str], path: pathlib.Path
) -> list[int]:
    """Return where the numbers of a vector stand in a table, all columns but the `other` one.

    With the names of a run's vector they are taken by name, else in order. Raises UserError for
    columns of other names.
    """
    own = [name for name in header if name != other]
    if not (own and names):
        return [header.index(name) for name in own]
    if set(own) != set(names):
        raise UserError(
            f"{path} has the columns {', '.join(own)}: expected those that this model "
            f"was trained with, {', '.join(names)}"
        )
    return [header.index(name) for name in names]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def numbers(
    rows: Sequence[Sequence[str]], columns: Sequence[int], header: Sequence[str], path: pathlib.Path
) -> np.ndarray:
    """Return some columns [n, c] in float64; raises UserError for what is no finite number."""
    found = np.empty((len(rows), len(columns)))
    for i, row in enumerate(rows):
        for k, column in enumerate(columns):
            try:
                found[i, k] = float(row[column])
            except ValueError:
                found[i, k] = np.nan
            if not np.isfinite(found[i, k]):
                raise UserError(
                    f"{path}: row {i + 1} has {row[column]!r} as {header[column]!r}: expected a "
                    "finite number"
                )
    return found
