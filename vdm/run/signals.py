"""SIGTERM, by which schedulers end a job: noted, so that the run can save before it goes."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Terminated(Exception):
    """The run was asked to end by SIGTERM, and has saved all that it had done."""


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM has come; the signal itself ends nothing.

    Python lets only the main thread have handlers: in another one the function says False and
    the signal does what it did before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.set())
    try:
        yield came.is_set
    finally:
        # None: the handler before was not set by Python, which cannot set it again.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
