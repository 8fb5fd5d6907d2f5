"""The pages that are made of the code itself: every key of a config, every option of a command."""

import argparse
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Mapping
from typing import Any

from vdm.run import arguments, config, data
from vdm.run.config import blocks, fields, rules

# Where the constructors that a name stands for are documented, by the key of the block.
MODULES = {
    "model.schedule": "vdm.schedules",
    "model.network": "vdm.networks",
    "model.likelihood": "vdm.likelihoods",
    "objective.weighting": "vdm.weightings",
}


def config_page() -> str:
    """Return the config's keys in Markdown, a section for each block."""
    pieces = ["## The top level", _table(config.Config, "")]
    for name, block in typing.get_type_hints(config.Config).items():
        if not dataclasses.is_dataclass(block):
            continue
        says = inspect.cleandoc(block.__doc__ or "").split("\n\n")[0]
        pieces += [f"## {name}", _code_spans(says), _table(block, f"{name}.")]
        for field in fields.of(block):
            path = f"{name}.{field.name}"
            if isinstance(field.rule, rules.Name):
                table = _names(field.rule.options, MODULES.get(path))
                pieces += [f"### {path}: the names", table]
        if block is config.DataConfig:
            pieces += [f"### {name}.name: the names", _sets()]
    return "\n\n".join(pieces)


def commands_page() -> str:
    """Return every command's help in Markdown, a section for each command."""
    whole = arguments.parser()
    (action,) = (a for a in whole._actions if isinstance(a, argparse._SubParsersAction))
    pieces = []
    for name, parser in action.choices.items():
        parser.formatter_class = _Narrow
        pieces += [f"## vdm {name}", f"```text\n{parser.format_help().rstrip()}\n```"]
    return "\n\n".join(pieces)


class _Narrow(argparse.HelpFormatter):
    """Help of a width that does not depend on the terminal of whoever builds the page."""

    def __init__(self, prog: str):
        super().__init__(prog, width=80)


PAGES = {"config": config_page, "commands": commands_page}


def fill(source: str) -> str:
    """Return a page with what its markers `<!-- generated: NAME -->` stand for."""
    return re.sub(r"<!-- generated: (\w+) -->", lambda found: PAGES[found[1]](), source)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _table(block: type, prefix: str) -> str:
    """Return a row for each field: its key, its type, what it takes, its default, its meaning."""
    rows = ["| key | type | takes | default | |", "| --- | --- | --- | --- | --- |"]
    for field in fields.of(block):
        kind, takes = field.kind.__name__, "" if field.rule is None else str(field.rule)
        if field.kind is Mapping:
            kind = "block"
        needed = field.default is dataclasses.MISSING
        default = "*needed*" if needed else f"`{_plain(field.default)}`"
        cells = (f"`{prefix}{field.name}`", kind, takes, default, field.says)
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(rows)


def _sets() -> str:
    """Return the data sets by name, each with the first sentence on it."""
    rows = ["| name | |", "| --- | --- |"]
    for name, load in {**data.DATASETS, **data.FILES}.items():
        first = inspect.cleandoc(load.__doc__ or "").split("\n\n")[0]
        first = " ".join(first.split()).partition(";")[0]
        rows.append(f"| `{name}` | {_cell(first)} |")
    return "\n".join(rows)


def _names(options: Mapping[str, Callable[..., Any]], module: str | None) -> str:
    rows = []
    for name, constructor in options.items():
        shown = f"`{name}`"
        if module is not None:
            shown = f"{{py:obj}}`{name} <{module}.{constructor.__name__}>`"
        given = [
            f"`{key}`" if p.default is p.empty else f"`{key} = {_plain(p.default)}`"
            for key, p in blocks.parameters(constructor, left_out=("log_snr",)).items()
        ]
        rows.append(f"| {shown} | {', '.join(given)} |")
    return "| name | arguments |\n| --- | --- |\n" + "\n".join(rows)


def _code_spans(text: str) -> str:
    return textwrap.dedent(text).replace("*", r"\*")


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
