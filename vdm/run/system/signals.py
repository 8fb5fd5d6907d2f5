"""SIGTERM, by which schedulers end a job: noted, so that the run can save before it ends."""

import contextlib
import itertools
import signal
import threading
import types
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


class Terminated(Exception):
    """The run was asked to end by SIGTERM, and has saved its work."""


def end_by_sigterm() -> None:
    """Let SIGTERM end this process, which JAX prevents once several processes are connected."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def sigterm_leaves() -> Iterator[None]:
    """Let SIGTERM end the process through the open `with` blocks, so that they clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: types.FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGTERM has come; the signal itself ends nothing.

    Several processes must call it equally often: whichever of them got the signal, all learn of it
    at the same call. Python lets only the main thread have handlers: in another one the function
    returns False and the signal does what it did before.
    """
    if jax.process_count() > 1:
        # JAX has its own handler since the processes connected.
        count = itertools.count()
        yield lambda: multihost_utils.reached_preemption_sync_point(next(count))
        return
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
