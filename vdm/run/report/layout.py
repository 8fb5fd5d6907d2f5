"""The parts of a page: sections of notes, tables, facts, figures and pictures, as plain values.

The template draws each part by its `kind`; nothing here or there computes anything.
"""

import dataclasses
from typing import ClassVar

from markupsafe import Markup


@dataclasses.dataclass(frozen=True)
class Note:
    """A quiet line: what is missing, and the command that makes it."""

    text: str
    command: str = ""
    kind: ClassVar[str] = "note"


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: ClassVar[str] = "text"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under headings; the first cell of a row names it. A numeric table aligns right."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: bool = True
    folded: bool = False
    kind: ClassVar[str] = "table"


@dataclasses.dataclass(frozen=True)
class Figure:
    """An SVG with a sentence that says what to see."""

    svg: Markup
    caption: str


@dataclasses.dataclass(frozen=True)
class Figures:
    """Figures side by side, as the page's width allows."""

    figures: tuple[Figure, ...]
    kind: ClassVar[str] = "figures"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as a data: address; `text` describes it, `label` stands below it."""

    source: str
    width: int
    height: int
    text: str
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Rows of pictures, each row with its name, under one caption."""

    caption: str
    rows: tuple[tuple[str, tuple[Picture, ...]], ...]
    kind: ClassVar[str] = "gallery"


@dataclasses.dataclass(frozen=True)
class Columns:
    """Pictures in columns, one below the other, with a line for each column."""

    caption: str
    columns: tuple[tuple[tuple[Picture, ...], str], ...]
    kind: ClassVar[str] = "columns"


Part = Note | Text | Table | Figures | Gallery | Columns


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page that the navigation leads to."""

    id: str
    title: str
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True)
class Headline:
    """The main number, at the top: `value` in `unit`, what it is, and names with values."""

    value: str
    error: str
    unit: str
    sentence: str
    facts: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Page:
    """A whole page; of several runs there is no one headline."""

    title: str
    subtitle: str
    headline: Headline | None
    sections: tuple[Section, ...]
    version: str
