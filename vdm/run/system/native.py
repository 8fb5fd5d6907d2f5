"""What JAX's C++ code does when another process is gone: it prints a stack trace and aborts.

That cannot be switched off from Python. So its text is held back for some seconds, and the abort
waits as long, in which this process can say the same in one line and end by itself.
"""

import ctypes
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

HELD_SECONDS = 3.0
# How the lines begin with which JAX reports a process that is gone: its coordination service, or
# what waits for that service's notice of a preemption, whichever comes first.
REPORT = re.compile(
    rb"^[EFW]\d{4} .*(coordination_service|preemption_sync_manager|Terminating process because)",
    re.M,
)
FATAL = b"Terminating process because the JAX distributed service detected fatal errors"


def hold_back(ended: Callable[[], None]) -> None:
    """Call `ended` some seconds after JAX has decided to end this process, in place of its abort.

    From here on what is not Python's goes to stderr through a pipe, a report of the coordination
    service only where nothing ended the process in these seconds.
    """
    _delay_aborts()
    stderr = os.dup(2)
    encoding = getattr(sys.stderr, "encoding", "utf-8")
    sys.stderr = os.fdopen(stderr, "w", 1, encoding=encoding, errors="backslashreplace")
    source, target = os.pipe()
    os.dup2(target, 2)
    os.close(target)
    threading.Thread(target=_forward, args=(source, stderr, ended), daemon=True).start()


def _delay_aborts() -> None:
    """Let a thread that aborts wait for six seconds before it ends the process.

    The handler is the C function `sleep`, which may be called in one, and the number of SIGABRT is
    the seconds it sleeps for; a handler in Python would run in another thread, and too late.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _forward(source: int, target: int, ended: Callable[[], None]) -> None:
    """Copy what comes until the other end is closed, but hold back a report and what follows."""
    held, until = b"", 0.0
    while True:
        wait = max(0.0, until - time.monotonic()) if held else None
        if select.select([source], [], [], wait)[0]:
            came = os.read(source, 1 << 16)
            if not came:
                return
            if held:
                held += came
            elif REPORT.search(came):
                held, until = came, time.monotonic() + HELD_SECONDS
            else:
                os.write(target, came)
        if held and time.monotonic() >= until:
            if FATAL in held:
                ended()
            os.write(target, held)
            held = b""
