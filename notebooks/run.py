"""Run a notebook from its percent-format source in a fresh kernel, and keep what it shows.

    python notebooks/run.py notebooks/01_swirl.py docs/notebooks/01_swirl.ipynb --timeout=300

The kernel is one of the interpreter that runs this script, in a temporary folder. The limit
is in seconds, for the notebook as a whole. A notebook that fails, that takes too long or whose
last output is not a picture is not written.
"""

import argparse
import os
import pathlib
import re
import sys
import tempfile
import time

import jupytext
import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class NotebookError(Exception):
    """What is wrong with a notebook, to be said without a traceback of this script's own."""


def read(source: pathlib.Path) -> nbformat.NotebookNode:
    """Return a percent-format file as a notebook that has not been run."""
    try:
        notebook = jupytext.read(source, fmt="py:percent")
    except OSError as error:
        raise NotebookError(f"cannot read {source}: {error.strerror}") from error
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # a random one would make every run differ
    return notebook


def execute(notebook: nbformat.NotebookNode, timeout: float) -> None:
    """Run every cell in order, and leave the outputs in the notebook.

    Raises NotebookError with the cell that failed, or that was running when the time was up.
    """
    started: list[int] = []
    begun: list[float] = []

    def left(cell):
        """Return the seconds that are left of the whole; nbclient's own limit is for a cell."""
        begun.append(time.monotonic())
        return max(0.01, begun[0] + timeout - begun[-1])

    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder, "work")
        work.mkdir()
        # Without folders to search, the specification is ipykernel's own, of this interpreter.
        manager = AsyncKernelManager(
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            connection_file=str(pathlib.Path(folder, "kernel.json")),
            transport="ipc",
        )
        client = NotebookClient(
            notebook,
            km=manager,
            timeout_func=left,
            on_cell_start=lambda cell, cell_index: started.append(cell_index),
            record_timing=False,
            shutdown_kernel="immediate",
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(work)}},
        )
        inline = "module://matplotlib_inline.backend_inline"
        environment = {**os.environ, "MPLBACKEND": inline, "IPYTHONDIR": folder}
        try:
            client.execute(env=environment)
        except CellTimeoutError as error:
            raise NotebookError(
                f"{_place(notebook, started)}\n{_source(notebook, started)}\n"
                f"still running after {timeout:g} s, the limit for the whole notebook"
            ) from error
        except CellExecutionError as error:
            # Begins with the cell's source.
            trace = COLOUR.sub("", str(error)).strip()
            raise NotebookError(f"{_place(notebook, started)}\n{trace}") from error
        except DeadKernelError as error:
            raise NotebookError(
                f"{_place(notebook, started)}\n{_source(notebook, started)}\nthe kernel died"
            ) from error


def check_picture(notebook: nbformat.NotebookNode) -> None:
    """Raise NotebookError unless the last cell that shows anything shows an image."""
    shown = [cell.outputs for cell in notebook.cells if cell.get("outputs")]
    if not shown or not any("image/png" in output.get("data", {}) for output in shown[-1]):
        raise NotebookError("ends without a picture: the last output is expected to be an image")


def write(notebook: nbformat.NotebookNode, target: pathlib.Path) -> None:
    """Write beside the target, then rename: nobody meets half a notebook."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, temporary)
        temporary.replace(target)
    except OSError as error:
        raise NotebookError(f"cannot write {target}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _place(notebook: nbformat.NotebookNode, started: list[int]) -> str:
    return f"cell {started[-1] + 1} of {len(notebook.cells)}"


def _source(notebook: nbformat.NotebookNode, started: list[int]) -> str:
    return "\n".join(f"    {line}" for line in notebook.cells[started[-1]].source.splitlines())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="notebooks/run.py", description="Run a notebook and write it with its outputs."
    )
    parser.add_argument("source", type=pathlib.Path, help="percent-format Python file")
    parser.add_argument("target", type=pathlib.Path, help="notebook to write, .ipynb")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for all cells")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    try:
        if options.timeout <= 0:
            raise NotebookError(f"the time limit must be positive: got {options.timeout:g} s")
        notebook = read(options.source)
        execute(notebook, options.timeout)
        check_picture(notebook)
        write(notebook, options.target)
    except NotebookError as error:
        print(f"{options.source.name}: {error}", file=sys.stderr)
        return 1
    print(f"{options.source.stem} … {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
