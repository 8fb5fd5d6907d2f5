"""Showing long work: a live bar on a terminal, plain lines in a log file."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from vdm.run.errors import one_line
from vdm.run.system.processes import is_first

Advance = Callable[[int, str], None]


@contextlib.contextmanager
def bar(what: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Yield advance(done, text): the number done, and a text to show with it.

    The bar shows the fraction done and the time that remains; `text` carries the rate and
    the loss. Where the output is not a terminal every text is printed on a line of its own.
    Of several processes only the first shows anything.
    """
    if not is_first():
        yield lambda done, text: None
        return
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda done, text: print(f"{what} {done}/{total} {text}", file=sys.stderr, flush=True)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total, completed=done, text="")
        yield lambda done, text: progress.update(task, completed=done, text=text)


def say(text: str) -> None:
    """Print an important line, above the bar if there is one."""
    if is_first():
        print(one_line(f"vdm: {text}"), file=sys.stderr, flush=True)
