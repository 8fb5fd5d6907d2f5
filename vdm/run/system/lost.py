"""A process of several that dies: the others notice it at once, say so in one line, and end.

Every process is connected to the first one and says when it leaves. A connection that ends without
that is a process that was killed. Of a machine that is cut off the kernel's own probes tell. So no
thread has to answer in time, and a process that is merely slow is never taken for a dead one.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from jax._src import distributed  # the addresses and the store that JAX keeps have no public name

from vdm.run.errors import UserError, one_line
from vdm.run.system import native
from vdm.run.system.signals import Terminated

EXIT_LOST = 75  # EX_TEMPFAIL of sysexits.h: the same command is worth another try
EXIT_STOPPED = 1
KEY = "vdm/lost"
# A connection is dead half a minute after its last sign of life (in seconds, and their number).
PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
CONNECT_SECONDS = 15
# For an error that the loss of another process causes, until that loss is known here.
NEWS_SECONDS = 5.0
# For the others to end by themselves where one has stopped with an error; theirs often says more.
STOPPED_SECONDS = 30.0


@contextlib.contextmanager
def ends_all(advice: Callable[[], str]) -> Iterator[None]:
    """Watch over the processes that have joined; in the block the loss of one ends this one.

    It prints which process has gone, and the `advice`, and ends with EXIT_LOST. Where another one
    left the block by an error and this one does not within STOPPED_SECONDS, it ends with
    EXIT_STOPPED: it would wait for the other in vain. After the block this process ends with what
    the block came to: 0, 1, or 2 for a UserError.
    """
    joined = distributed.global_state
    links = _Links(joined.process_id, joined.num_processes, advice)
    native.hold_back(lambda: links.lost(None))
    if joined.num_processes > 1:
        if joined.process_id == 0:
            links.listen()
        else:
            links.connect()
    try:
        yield
    except Terminated:
        links.leave("done", 128 + 15)
        raise
    except BaseException as error:
        # A thread of ours ends the process meanwhile, if the error is from the loss of another.
        time.sleep(1.0 if isinstance(error, UserError | KeyboardInterrupt) else NEWS_SECONDS)
        links.leave("stopped", 2 if isinstance(error, UserError) else EXIT_STOPPED)
        raise
    links.leave("done", 0)


class _Links:
    """The connections of this process: to the first one, or of the first to all others."""

    def __init__(self, index: int, count: int, advice: Callable[[], str]) -> None:
        self._index, self._count, self._advice = index, count, advice
        self._open: dict[int, socket.socket] = {}
        self._code: int | None = None  # the exit code, once this process has left
        self._ending = threading.Lock()

    def listen(self) -> None:
        """Await the other processes, which find the port in JAX's store."""
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(("", 0), family=family, dualstack_ipv6=both)
        token = secrets.token_hex(16)  # whoever else finds the port is none of the processes
        _thread(self._accept, listener, token)
        client = distributed.global_state.client
        assert client is not None
        client.key_value_set(KEY, f"{listener.getsockname()[1]} {token}")

    def connect(self) -> None:
        """Connect with the first process; without a connection JAX's own timeout has to do."""
        client, address = (
            distributed.global_state.client,
            distributed.global_state.coordinator_address,
        )
        assert client is not None and address is not None
        try:
            found = client.blocking_key_value_get(KEY, CONNECT_SECONDS * 1000)
            port, token = found.split()
            host = address.rpartition(":")[0].strip("[]")
            link = socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS)
            link.settimeout(None)
            link.sendall(f"{token} {self._index}\n".encode())
        # JAX's store raises errors of its own types.
        except Exception as error:
            self._say(
                f"process {self._index} has no connection with process 0 beside JAX's "
                f"({str(error).splitlines()[0]}): a process that dies is noticed after 100 s"
            )
            return
        self._keep(0, link)
        _thread(self._hear, 0, link.makefile("rb"))

    def leave(self, how: str, code: int) -> None:
        """Tell the others that this process ends, "done" or "stopped", and with which code."""
        for file in (sys.stdout, sys.stderr):
            file.flush()
        self._code = code
        self._tell(f"{how} {self._index}")

    def lost(self, index: int | None) -> None:
        """End this process, since the one of an index, or an unknown one, has gone."""
        name = "another process" if index is None else f"process {index} of {self._count}"
        self._end(f"{name} has gone; {self._advised()}", EXIT_LOST, index)

    def _accept(self, listener: socket.socket, token: str) -> None:
        while True:
            link, _ = listener.accept()
            _thread(self._greet, link, token)

    def _greet(self, link: socket.socket, token: str) -> None:
        file = link.makefile("rb")
        with contextlib.suppress(OSError):
            words = file.readline(100).decode(errors="replace").split()
            if len(words) == 2 and secrets.compare_digest(words[0], token):
                self._keep(int(words[1]), link)
                self._hear(int(words[1]), file)
                return
        link.close()

    def _keep(self, index: int, link: socket.socket) -> None:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in PROBES.items():
            if hasattr(socket, name):  # not on every system
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._open[index] = link

    def _hear(self, index: int, file: BinaryIO) -> None:
        """Act on what the process of an index says, until its connection ends."""
        left = False
        with contextlib.suppress(OSError):  # the connection was reset, or its probes missed
            for line in file:
                how, number = line.decode().split()
                if how == "gone":
                    self.lost(int(number))
                elif how == "stopped":
                    _thread(self._stop, int(number))
                left |= int(number) == index
        if not left:
            self.lost(index)

    def _stop(self, index: int) -> None:
        if self._index == 0:
            self._tell(f"stopped {index}")
        time.sleep(STOPPED_SECONDS)
        name = f"process {index} of {self._count}"
        self._end(f"{name} has stopped; its output says why", EXIT_STOPPED, None)

    def _end(self, text: str, code: int, gone: int | None) -> None:
        with self._ending:  # whoever comes second waits for the end
            if self._code is not None:
                os._exit(self._code)
            if gone is not None:
                self._tell(f"gone {gone}")
            self._say(text)
            os._exit(code)

    def _advised(self) -> str:
        try:
            return self._advice()
        except OSError:  # the folder may have gone with the process
            return "run the same command again"

    def _tell(self, text: str) -> None:
        for link in list(self._open.values()):
            with contextlib.suppress(OSError):
                link.send(f"{text}\n".encode(), socket.MSG_DONTWAIT)

    def _say(self, text: str) -> None:
        # Beside sys.stderr's own lock, which a thread that hangs may hold; over a bar, if there is
        # one, and with the cursor that it hides.
        start = "\r\x1b[K\x1b[?25h" if sys.stderr.isatty() else ""
        os.write(sys.stderr.fileno(), f"{start}{one_line(f'vdm: {text}')}\n".encode())


def _thread(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()
