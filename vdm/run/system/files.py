"""Writing files so that nothing is ever half-written: write a temporary file, then rename it."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from vdm.run.errors import UserError

TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}(\.\w+)?")  # the names that `replacing` gives
KEPT_SECONDS = 3600.0  # longer than a file is written


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary path beside `path` that takes its place when the block succeeds.

    A link is followed. Raises UserError where the folder cannot be written to, and for a path that
    exists and is not a file.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}: it exists already and is not a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix
        )
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}") from error
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; a result is as readable as the user's other files.
        temporary.chmod(0o666 & ~umask())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary folder that becomes `path`, a new folder, when the block succeeds.

    Raises UserError where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}") from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~umask())
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: pathlib.Path) -> None:
    """Remove the temporary files of `replacing` that a killed process left, after an hour."""
    for path in folder.glob(".*"):
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            with contextlib.suppress(OSError):  # another process may have been faster
                if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                    path.unlink()


def umask() -> int:
    """Return the rights that the user's new files do not have."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: pathlib.Path, value: object) -> None:
    """Write a JSON document, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: pathlib.Path) -> Any:
    """Read a JSON document; raises UserError if it is missing, no file or damaged."""
    check_is_file(path)
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # the second for thousands of open brackets
        raise UserError(f"{path} is damaged: {error}") from error


def check_is_file(path: pathlib.Path) -> None:
    """Raise UserError for what is there and is no file: a pipe would be waited for without end."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe or a device"
        raise UserError(f"{path} is not a file: it is {what}")


def check_writable(folder: pathlib.Path) -> None:
    """Raise UserError unless files can be made in the folder, which is made if necessary."""
    with replacing(folder / ".writable") as temporary:
        temporary.write_text("")
    (folder / ".writable").unlink()
