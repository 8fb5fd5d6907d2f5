"""The rules for config values: a bounded number, a word, a name; each rule stands at its field.

A rule finds what is wrong with a value (`problem`) and describes the valid ones (`str`). The check
of a config, the options of a command, their help and the docs page are made from it.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, runtime_checkable

from vdm.choices import unknown
from vdm.run.config import own

CHAIN = ":chain"  # what follows the T of a fitted chain
COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


@runtime_checkable
class Rule(Protocol):
    """The two functions of every rule."""

    def problem(self, key: str, value: Any) -> str | None:
        """Return what is wrong with a value of the field's type in one line, None if valid."""
        ...

    def __str__(self) -> str:
        """Return the valid values in words, for help and docs."""
        ...


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number from `at_least` (or `above`) to `at_most` (or `below`)."""

    at_least: int | float | None = None
    at_most: int | float | None = None
    above: int | float | None = None
    below: int | float | None = None

    def problem(self, key: str, value: int | float) -> str | None:
        if isinstance(value, float) and not math.isfinite(value):
            return f"{key} must be finite: got {value}"
        for name, holds in COMPARISONS.items():
            bound = getattr(self, name)
            if bound is not None and not holds(value, bound):
                return f"{key} must be {name.replace('_', ' ')} {bound:,}: got {value:,}"
        return None

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:,} to {self.at_most:,}"
        bounds = {name: getattr(self, name) for name in COMPARISONS}
        return ", ".join(
            f"{name.replace('_', ' ')} {bound:,}"
            for name, bound in bounds.items()
            if bound is not None
        )


@dataclasses.dataclass(frozen=True)
class Counts:
    """A text of whole numbers between two bounds, comma-separated unless it is a single one."""

    at_least: int
    at_most: int
    or_inf: bool = False
    several: bool = True
    or_chain: bool = False  # a number may be that of a fitted chain, as in 10:chain

    def problem(self, key: str, value: str) -> str | None:
        for word in split_words(value) if self.several else (value,):
            if not self._holds(word):
                return f"{key} must be {self}: got {word!r}"
        return None

    def values(self, text: str) -> tuple[int | None, ...]:
        """Return the numbers in a text without a problem, each once; None for inf.

        Those of fitted chains are left out: `of_chains` returns them.
        """
        words = (word for word in split_words(text) if not word.endswith(CHAIN))
        return tuple(dict.fromkeys(None if word == "inf" else int(word) for word in words))

    def of_chains(self, text: str) -> tuple[int, ...]:
        """Return the numbers in a text that are those of fitted chains, each once."""
        words = (word for word in split_words(text) if word.endswith(CHAIN))
        return tuple(dict.fromkeys(int(word.removesuffix(CHAIN)) for word in words))

    def _holds(self, word: str) -> bool:
        if word == "inf":
            return self.or_inf
        if self.or_chain:
            word = word.removesuffix(CHAIN)
        # The length first: Python refuses to read a number of thousands of digits.
        is_whole = word.isascii() and word.isdigit() and len(word) <= 20
        return is_whole and self.at_least <= int(word) <= self.at_most

    def __str__(self) -> str:
        inf, span = " or inf" * self.or_inf, f"{self.at_least:,} to {self.at_most:,}"
        if self.or_chain:
            inf += f", also as in 10{CHAIN}"
        if self.several:
            return f"whole numbers from {span}{inf}, comma-separated"
        return f"a whole number from {span}{inf}"


@dataclasses.dataclass(frozen=True)
class Word:
    """One of some words."""

    words: Collection[str]

    def problem(self, key: str, value: str) -> str | None:
        return None if value in self.words else unknown(key, value, self.words)

    def __str__(self) -> str:
        *others, last = self.words
        return f"{', '.join(others)} or {last}" if others else last


@dataclasses.dataclass(frozen=True)
class Words:
    """A text of some of the words, comma-separated."""

    words: Collection[str]

    def problem(self, key: str, value: str) -> str | None:
        found = (Word(self.words).problem(key, word) for word in split_words(value))
        return next((problem for problem in found if problem is not None), None)

    def __str__(self) -> str:
        more = "both" if len(self.words) == 2 else "several"
        return f"{', '.join(self.words)} or {more}, comma-separated"


@dataclasses.dataclass(frozen=True)
class Name:
    """The name of a constructor with its arguments: a block, or a text as in heun:churn=0.2.

    Or it is the name of an own part, package.module:Name. The arguments are checked where the
    constructor is called; see `vdm.run.config.blocks`.
    """

    options: Mapping[str, Callable[..., Any]]

    def problem(self, key: str, value: Mapping[str, Any] | str) -> str | None:
        name = own.split(value, self.options)[0] if isinstance(value, str) else value["name"]
        if own.is_own(name):
            return own.problem(key, name)
        return Word(self.options).problem(key, name)

    def __str__(self) -> str:
        return str(Word(self.options))


def split_words(text: str) -> tuple[str, ...]:
    """Return the comma-separated words of a text, each once."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",")))
