"""Choosing by name: one error message for every name that does not exist."""

import difflib
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def unknown(what: str, got: str, known: Iterable[str]) -> str:
    """Return the one-line message for a name that is not among the known ones."""
    known = sorted(known)
    return f"unknown {what} {got!r}: expected one of {', '.join(known)}.{did_you_mean(got, known)}"


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Return the question after the nearest of the known names, "" where none is near."""
    close = difflib.get_close_matches(str(got), sorted(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def choose(what: str, name: str, options: dict[str, T]) -> T:
    """Return options[name]; raises ValueError naming the nearest valid name otherwise."""
    if name not in options:
        raise ValueError(unknown(what, name, options))
    return options[name]
