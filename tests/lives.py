"""Runs to be ended by force: a process that imports once, and forks a `vdm` for every request.

Until the first array exists a process that has imported JAX can be forked, and a fork costs
nothing beside an import. Run as a script this module is that process.
"""

import json
import os
import resource
import subprocess
import sys
import traceback


class Lives:
    """Starts commands one after the other; use it as a context manager."""

    def __init__(self, folder):
        self._environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        }

    def __enter__(self):
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment,
            text=True,
        )
        return self

    def __exit__(self, *error):
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def start(self, *arguments, largest_file=None):
        """Start a command and return its process id; files may be `largest_file` bytes long."""
        self._server.stdin.write(json.dumps([arguments, largest_file]) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def wait(self):
        """Return the exit code of the command (−9 if it was killed) and its stderr."""
        return json.loads(self._server.stdout.readline())

    def run(self, *arguments, **limits):
        """Run a command to its end."""
        self.start(*arguments, **limits)
        return self.wait()


def _serve():
    # All that a run imports, now; nothing that starts a thread.
    from vdm.run import cli, train  # noqa: F401

    for line in sys.stdin:
        arguments, largest_file = json.loads(line)
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            _live(arguments, largest_file, writable)
        os.close(writable)
        print(child, flush=True)
        with os.fdopen(readable) as stderr:
            text = stderr.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([code, text]), flush=True)


def _live(arguments, largest_file, stderr):
    from vdm.run import cli

    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for target, source in ((0, null), (1, null), (2, stderr)):
            os.dup2(source, target)
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        code = cli.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
