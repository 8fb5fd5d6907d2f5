"""Keeping the tracebacks of orbax's threads off stderr: errors are reported in one line.

Every one of these errors also reaches the caller as an exception.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the block orbax logs nothing, and its threads do not report a closed event loop."""
    # Permanent: a failed task is reported when it is collected, which may be much later.
    logging.getLogger("asyncio").addFilter(_is_not_of_orbax)
    hook, logger = sys.unraisablehook, logging.getLogger("absl")
    level = logger.level

    def drop(unraisable: Any) -> None:
        # Tensorstore's threads, when an error has ended the loop that they report to.
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = drop
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logger.setLevel(level)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.getMessage()
