"""Keeping the tracebacks of orbax's threads off stderr: errors are reported in one line.

Every one of these errors also reaches the caller as an exception.
"""

import contextlib
import dataclasses
import logging
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the block orbax logs nothing; from then on it does not report errors of its tasks."""
    # Permanent, both: a failed task is reported when it is collected, and a thread that reads when
    # it is done, which may be much later.
    logging.getLogger("asyncio").addFilter(_is_not_of_orbax)
    if not isinstance(sys.unraisablehook, _WithoutOrbax):
        sys.unraisablehook = _WithoutOrbax(sys.unraisablehook)
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def after_a_failed_read() -> None:
    """From now on do not warn of the coroutines that a failed read has left behind."""
    # Only then: in a program of the user's own such a warning may be about its own coroutines.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


@dataclasses.dataclass(frozen=True)
class _WithoutOrbax:
    """The hook for errors that nobody can catch any more, without those of orbax's reading."""

    other: Callable[[Any], object]

    def __call__(self, unraisable: Any) -> None:
        # The second of a thread of tensorstore, when an error has ended the loop it reports to.
        if not (
            _passes_orbax(unraisable.exc_traceback)
            or str(unraisable.exc_value) == "Event loop is closed"
        ):
            self.other(unraisable)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    text = record.getMessage().lower()
    of_orbax = record.exc_info is not None and _passes_orbax(record.exc_info[2])
    return not (of_orbax or "orbax" in text or "tensorstore" in text)


def _passes_orbax(found: types.TracebackType | None) -> bool:
    """Return whether an error has come through orbax's code."""
    return any("orbax" in frame.f_code.co_filename for frame, _ in traceback.walk_tb(found))
