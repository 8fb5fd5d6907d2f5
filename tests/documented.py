"""What the documents tell their readers to type: every command, in its order.

A command is a line of a shell block, fenced or indented, or a piece of inline code that begins
with one of `PROGRAMS`. Inline `vdm` without a workdir is a mention: it names a command or an
option, and is not to be typed as it stands.
"""

import ast
import pathlib
import re
import shlex
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = ("vdm", "make", "python", "pip")
SHELL = ("sh", "bash", "console", "shell")
FENCE = re.compile(r" *```+\{?([\w-]*)")
# What may stand before a program: variables, the choice of a processor, a prompt.
BEFORE = re.compile(r"(?:(?:[A-Z_]+=\S+|taskset -c \d+|\$) +)*")
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


class Command(NamedTuple):
    """One command: the document, its words, and whether it is only mentioned."""

    page: str
    words: tuple[str, ...]
    mention: bool

    def __str__(self):
        return f"{self.page}: {shlex.join(self.words)}"


def pages():
    """The documents, by their path from the root: the README first, then what it leads to."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found += [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")]
    for folder in ("experiments", "benchmarks", "notebooks"):
        found += sorted((ROOT / folder).glob("*.py"))
    return [str(path.relative_to(ROOT)) for path in found]


def prose(page):
    """A document's text: Markdown, the docstring of a script, or the text cells of a notebook."""
    text = (ROOT / page).read_text()
    if page.endswith(".md"):
        return text
    if "# %% [markdown]" not in text:
        return ast.get_docstring(ast.parse(text)) or ""
    cells = re.findall(r"^# %% \[markdown\].*\n((?:#.*\n?)*)", text, re.MULTILINE)
    return "\n".join(re.sub("^# ?", "", cell, flags=re.MULTILINE) for cell in cells)


def pieces(page):
    """Every (kind, text) in its order: a fence's language or "", "indented" or "text"."""
    kind, lines = "text", []
    for line in [*prose(page).splitlines(), "", "."]:
        fence = FENCE.match(line)
        if kind not in ("text", "indented"):  # inside a fence: only its end ends it
            if not fence:
                lines.append(line)
                continue
            new = "text"
        elif fence:
            new = fence[1]
        elif line.startswith("    ") and (kind == "indented" or not "".join(lines[-1:]).strip()):
            new = "indented"
        else:
            new = "text" if line.strip() else kind
        if new == kind and not fence:
            lines.append(line)
            continue
        yield kind, "\n".join(lines)
        kind, lines = new, [] if fence else [line]
    if kind != "text":
        raise ValueError(f"{page}: a fence is open at the end")
    yield kind, "\n".join(lines)


def lines_of(text):
    """The lines of a shell block: continued ones joined, comments and prompts left out."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = [BEFORE.sub("", line.strip(), count=1) for line in joined.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def inline(page):
    """The pieces of inline code of a document, each on one line."""
    return [
        " ".join(code.split())
        for kind, text in pieces(page)
        if kind == "text"
        for code in INLINE.findall(text)
    ]


def shell_lines(page):
    """The lines of the blocks that say they are shell's, whatever their program; no scripts."""
    blocks = [text for kind, text in pieces(page) if kind in SHELL and not text.startswith("#!")]
    return [line for text in blocks for line in lines_of(text)]


def commands(page):
    """The commands of a document in their order."""
    return list(_commands(page))


def _commands(page):
    for kind, text in pieces(page):
        typed = kind in (*SHELL, "", "indented")
        if kind == "text":
            lines = [" ".join(code.split()) for code in INLINE.findall(text)]
        else:
            lines = lines_of(text) if typed else []
        for line in lines:
            line = BEFORE.sub("", line, count=1)
            if re.match(rf"({'|'.join(PROGRAMS)}) ", line):
                words = tuple(shlex.split(line, comments=typed))
                mention = not typed and words[0] == "vdm" and "--workdir" not in line
                yield Command(page, words, mention)
