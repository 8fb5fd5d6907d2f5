"""What commands share: where results go, what is printed, and checks of options."""

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from vdm.run.config.rules import Number
from vdm.run.errors import UserError
from vdm.run.system import processes

OF_PROCESSES = ("--distributed", "--coordinator", "--num_processes", "--process_index")


def folder(workdir: pathlib.Path) -> pathlib.Path:
    """Return where results go: the workdir, or the folder of an exported run's file."""
    return workdir.parent if workdir.suffix == ".safetensors" and workdir.is_file() else workdir


def check_topology(options: argparse.Namespace) -> None:
    """Raise UserError for other devices without a dry run: nothing can be done on them."""
    if options.topology is not None and not options.dry_run:
        raise UserError("--topology goes with --dry_run: its devices are not here")


def dry(
    options: argparse.Namespace, describe: Callable[[Sequence[Any] | None], list[tuple[str, str]]]
) -> list[tuple[str, str]]:
    """Return the lines of a dry run, on the devices that are here or on those of --topology."""
    from vdm.run.compiled import topology

    if options.topology is None:
        return describe(None)
    with topology.little_effort():
        return describe(topology.devices(options.topology))


def print_dry(options: argparse.Namespace, done: str, lines: list[tuple[str, str]]) -> None:
    """Print the lines of a dry run, in which nothing was `done`."""
    if processes.is_first():
        print_lines(f"{options.workdir}: dry run, nothing was {done}", lines)


def check_split(options: argparse.Namespace) -> None:
    """Raise UserError for a file in place of a split, with the command that takes it."""
    if "/" in options.split or pathlib.Path(options.split).suffix:
        raise UserError(
            f"--split names a split of the run's data set: got {options.split!r}, a path, which is "
            f"for `vdm score {options.split} --workdir={options.workdir}`"
        )


def check_num(rule: Number, num: int, named: str = "--num") -> None:
    """Raise UserError for a number that breaks its rule; `named` is its option."""
    problem = rule.problem(named, num)
    if problem is not None:
        raise UserError(problem)


def no_more(rest: list[str]) -> None:
    """Raise UserError for words of the command line that are no options of this command."""
    if rest and rest[0].partition("=")[0] in OF_PROCESSES:
        raise UserError(
            f"{rest[0].partition('=')[0]} is for train, evaluate, score and sample: this command "
            "is one process"
        )
    if rest:
        raise UserError(f"unrecognised argument {rest[0]!r}: see `vdm --help`")


def say(text: str) -> None:
    """Print a line, of several processes only in the first."""
    if processes.is_first():
        print(text)


def print_lines(title: str, lines: list[tuple[str, str]]) -> None:
    """Print names and values as a table."""
    table = Table(title=title, show_header=False)
    for name, value in lines:
        table.add_row(name, value)
    Console().print(table)
