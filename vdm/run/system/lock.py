"""One run at a time in a workdir: a lock that the kernel releases when its process dies."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from vdm.run.errors import UserError

LOCK_FILE = ".lock"


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Hold the workdir, made if necessary, in the block; raises UserError if another run has it.

    The file stays, since removing it would let two runs hold two files of one name; what counts is
    the lock on it, which `kill -9` releases like any other end of a process.
    """
    path = workdir / LOCK_FILE
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Opened to append: a second run must not empty the file of the one that holds it.
        file = path.open("a+")
    except OSError as error:
        raise UserError(f"cannot write to {workdir}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            number = file.read().strip()
            raise UserError(
                f"another run is training in {workdir}"
                f"{f' (process {number})' if number else ''}: wait until it ends, stop it, or use "
                "another --workdir"
            ) from error
        except OSError as error:
            raise UserError(f"cannot lock {path}: {error.strerror}") from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
