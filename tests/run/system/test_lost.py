"""How the end of one process reaches the others, and what of JAX's own words is held back."""

import signal
import socket
import subprocess
import sys
import time

import pytest

JOINED = """
import os, sys, time
import jax
from vdm.run.errors import UserError
from vdm.run.system import lost
lost.STOPPED_SECONDS = 1.0
address, count, index, before, block, after = sys.argv[1:]
exec(before)
jax.distributed.initialize(address, int(count), int(index))
with lost.ends_all(lambda: "some advice"):
    print("in", flush=True)
    exec(block)
exec(after)
"""
# In the end the process aborts, as JAX lets it.
NATIVE = """
import ctypes, os, sys, threading, time
from vdm.run.system import native
native.hold_back(lambda: os._exit(75))
for line in sys.argv[1:]:
    os.write(2, (line + "\\n").encode())
    time.sleep(0.05)  # so that each is read by itself
print("Python's own", file=sys.stderr)
time.sleep(0.1)
ctypes.CDLL(None).abort()
"""
REPORT = "E1126 22:17:24.289332    7218 coordination_service_agent.cc:289] Polled an error"
PREEMPTION = (
    "W1126 22:17:24.289301    7218 preemption_sync_manager.cc:147] Failed to retrieve preemption "
    "notice from coordination service: UNAVAILABLE: Socket closed"
)
FATAL = (
    "F1126 22:17:24.289373    7218 client.h:80] Terminating process because the JAX distributed "
    "service detected fatal errors. This most likely indicates that another task died"
)


def start(blocks, before="", after=""):
    """Start processes that join, and do what is asked of each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    command = [sys.executable, "-c", JOINED, address, str(len(blocks))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([*command, str(index), before, block, after], **pipes)
        for index, block in enumerate(blocks)
    ]
    assert [process.stdout.readline() for process in processes] == ["in\n"] * len(blocks)
    return processes


def ends(processes):
    texts = [process.communicate(timeout=60)[1] for process in processes]
    return [process.returncode for process in processes], texts


def test_processes_that_end_at_different_moments_are_not_lost():
    # Without JAX's own barrier at the end, which would let them end at one moment.
    codes, texts = ends(start(["time.sleep(1.0)", "pass"], after="os._exit(0)"))
    assert codes == [0, 0] and texts == ["", ""]


@pytest.mark.parametrize("index", [0, 2])
def test_all_others_learn_which_process_has_gone(index):
    processes = start(["time.sleep(1000)"] * 3)
    time.sleep(0.2)  # they have been greeted
    processes[index].send_signal(signal.SIGKILL)
    codes, texts = ends(processes)
    assert codes.pop(index) == -signal.SIGKILL and codes == [75, 75]
    assert texts.pop(index) == ""
    assert texts == [f"vdm: process {index} of 3 has gone; some advice\n"] * 2


@pytest.mark.parametrize("index", [0, 2])
def test_an_error_in_one_alone_ends_the_others_which_would_wait_in_vain(index):
    blocks = ["time.sleep(1000)"] * 3
    blocks[index] = "time.sleep(0.2); raise UserError('a mistake')"
    codes, texts = ends(start(blocks))
    # Here Python says why, in `vdm` the line of the command.
    assert codes.pop(index) == 2 and "UserError: a mistake" in texts.pop(index)
    assert codes == [1, 1]
    assert texts == [f"vdm: process {index} of 3 has stopped; its output says why\n"] * 2


def test_without_a_connection_of_ours_the_end_of_jax_is_one_line():
    refused = "lost.socket.create_connection = lambda *given, **more: open('/no/such/file')"
    processes = start(["time.sleep(1000)"] * 2, refused)
    processes[0].send_signal(signal.SIGKILL)
    codes, texts = ends(processes)
    assert codes == [-signal.SIGKILL, 75]
    first, last = texts[1].splitlines()
    assert first.startswith("vdm: process 1 has no connection with process 0 beside JAX's")
    assert first.endswith("a process that dies is noticed after 100 s")
    assert last == "vdm: another process has gone; some advice"


@pytest.mark.parametrize(
    ("lines", "code", "shown"),
    [
        ([REPORT, FATAL, "a stack trace"], 75, ""),
        ([PREEMPTION, "more of it", REPORT, FATAL], 75, ""),
        ([REPORT, "of something else"], -signal.SIGABRT, f"{REPORT}\nof something else\n"),
        (["a warning"], -signal.SIGABRT, "a warning\n"),
    ],
)
def test_only_the_report_of_a_lost_process_is_held_back(lines, code, shown):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", NATIVE, *lines], stderr=subprocess.PIPE, text=True, timeout=60
    )
    assert done.returncode == code
    assert done.stderr.replace("Python's own\n", "") == shown
    assert "Python's own\n" in done.stderr and time.monotonic() - began < 30
