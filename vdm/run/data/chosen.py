"""Conditions from the command line: --label, --cond and --cond_file, together where a run has all.

    --label=7               the class of every example
    --cond=0.3,0.8          the vector of every example, in the user's units
    --cond_file=FILE.npy    vectors [n, c], or the only kind of a run that has no vectors
    --cond_file=FILE.npz    labels, cond and cond_field, those that the run has
    --cond_file=FILE.csv    a header and a row of numbers for each example; a column `labels` is the
                            class; the others are taken by name where the run's have names

A file has a row for each example, or one row for all of them.
"""

import argparse
import pathlib
from typing import NamedTuple

import numpy as np

from vdm.condition import Conditions, num_rows
from vdm.run.data import asked, table
from vdm.run.data.beside import Called
from vdm.run.data.condition import KINDS, Condition
from vdm.run.data.stores import numpy_files
from vdm.run.data.stores.names import OWN, check_names
from vdm.run.errors import UserError
from vdm.run.system.files import check_is_file

ENDINGS = (*numpy_files.ENDINGS, ".csv")
IN_ALL = Called("--label", "--cond", "--cond_file (cond_field)")


class Options(NamedTuple):
    """What the command line says of conditions; None for an option that is not given."""

    label: int | None = None
    cond: str | None = None
    cond_file: pathlib.Path | None = None

    @property
    def first(self) -> str | None:
        """The first option that is given, as it is typed; None where there is none."""
        given = (f"--{name}" for name, value in self._asdict().items() if value is not None)
        return next(given, None)


def of(options: argparse.Namespace) -> Options:
    """Return the options of a command that are of conditions."""
    return Options(options.label, options.cond, options.cond_file)


def read(
    options: Options, condition: Condition, size: int, shape: tuple[int, ...], each: str
) -> Conditions | None:
    """Return the condition of each of `size` examples of a shape, in the user's units.

    None where no option is given. `each` says in words what there are `size` of. Raises UserError
    for a file that cannot be read, for a kind that the run does not have, that is missing or given
    twice, and for what `vdm.run.data.asked.checked` refuses.
    """
    if options.first is None:
        return None
    found: dict[str, np.ndarray] = {}
    called = IN_ALL._asdict()
    if options.label is not None:
        found["label"] = np.full(1, options.label)
    if options.cond is not None:
        found["vector"] = _vector(options.cond)[None]
    if options.cond_file is not None:
        for kind, part in _file(options.cond_file, condition).items():
            if kind in found:
                raise UserError(f"{called[kind]} and --cond_file both give {asked.WORDS[kind]}")
            array = next(array for own, _, array in KINDS if own == kind)
            named = options.cond_file.suffix.lower() == ".npz"
            called[kind] = f"--cond_file ({array})" if named else "--cond_file"
            found[kind] = part
    names = Called(**called)
    there = asked.parts(Conditions(**found), condition, names)
    every = {
        kind: None if part is None else _for_each(np.asarray(part), size, called[kind], each)
        for kind, part in there._asdict().items()
    }
    return asked.checked(Conditions(**every), condition, size, shape, names)


def usual(condition: Condition) -> tuple[str, ...]:
    """Return a line on the conditions that samples have by default, where they are kept ones."""
    if condition.vector is None and condition.field is None:
        return ()
    assert condition.some is not None
    return (
        f"samples have the conditions of {num_rows(condition.some)} training examples, one after "
        f"the other; for others give {asked.kinds(condition, IN_ALL)}",
    )


def _vector(text: str) -> np.ndarray:
    try:
        return np.array([float(word) for word in text.split(",")])
    except ValueError:
        raise UserError(
            f"--cond must be numbers, comma-separated, such as 0.3,0.8: got {text!r}"
        ) from None


def _file(path: pathlib.Path, condition: Condition) -> dict[str, np.ndarray]:
    """Return the parts that a file has."""
    if not path.exists():
        raise UserError(f"no file {str(path)!r} (--cond_file), relative to {path.cwd()}")
    check_is_file(path)
    suffix = path.suffix.lower()
    if suffix not in ENDINGS:
        raise UserError(f"--cond_file must be one of {', '.join(ENDINGS)}: got {path.name!r}")
    if suffix == ".csv":
        return _csv(path, condition.vector_names)
    arrays = numpy_files.read_file(path)
    if suffix == ".npz":
        check_names(arrays, OWN, path)
        if not arrays:
            raise UserError(f"{path} holds no arrays: expected one of {', '.join(OWN)}")
        return {kind: arrays[name] for kind, _, name in KINDS if name in arrays}
    kind = "vector" if "vector" in condition.names else next(iter(condition.names), "vector")
    return {kind: arrays["x"]}


def _csv(path: pathlib.Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    header, rows = table.read(path)
    if "file" in header:
        raise UserError(
            f"{path} names its rows by a column 'file', but --cond_file goes by the order of the "
            "examples: expected no such column"
        )
    found: dict[str, np.ndarray] = {}
    if "labels" in header:
        at = header.index("labels")
        values = table.numbers(rows, [at], header, path)[:, 0]
        whole = values == np.round(values)
        found["label"] = values.astype(np.int64) if whole.all() else values
    if columns := table.columns(header, "labels", names, path):
        found["vector"] = table.numbers(rows, columns, header, path)
    return found


def _for_each(part: np.ndarray, size: int, what: str, each: str) -> np.ndarray:
    """Return a row for each example, where there is one row for all of them."""
    if part.ndim and len(part) == 1:
        return np.repeat(part, size, axis=0)
    if part.ndim and len(part) != size:
        raise UserError(
            f"{what} has {len(part)} rows: expected {size}, one for each {each}, or one for all"
        )
    return part
