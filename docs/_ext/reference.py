"""The pages that are made of the code itself: every key of a config, every option of a command."""

import argparse
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vdm import laws
from vdm.run import arguments, config
from vdm.run.training import build, checks, objective

# What a block with a name can be, and where its constructors are documented.
BLOCKS: Mapping[str, tuple[Mapping[str, Callable[..., Any]], str | None]] = {
    "model.schedule": (build.SCHEDULES, "vdm.schedules"),
    "model.network": (build.NETWORKS, "vdm.networks"),
    "model.likelihood": (build.LIKELIHOODS, "vdm.likelihoods"),
    "objective.law": (laws.LAWS, None),
    "objective.weighting": (objective.WEIGHTINGS, "vdm.weightings"),
    "sample.sampler": (checks.SAMPLERS, None),
}
# Of Flax's modules, and the λ that a weight is a function of: not for a config to set.
NOT_ARGUMENTS = ("parent", "name", "log_snr")


class Key(typing.NamedTuple):
    """A key of the config: its type, its default as it would be written, and what it is."""

    name: str
    kind: str
    default: str | None
    says: str


def keys(block: type) -> Iterator[Key]:
    """Yield the keys of a config's dataclass, each with the comment beside or above it."""
    lines, types = inspect.getsource(block).splitlines(), typing.get_type_hints(block)
    for field in dataclasses.fields(block):
        (at,) = (i for i, line in enumerate(lines) if re.match(rf"    {field.name}: ", line))
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        kind = types[field.name]
        yield Key(
            field.name,
            "block" if typing.get_origin(kind) is not None else kind.__name__,
            None if default is dataclasses.MISSING else _plain(default),
            _comment(lines, at),
        )


def config_page() -> str:
    """Return the config's keys in Markdown, a section for each block."""
    hints = typing.get_type_hints(config.Config)
    (seed,) = (key for key in keys(config.Config) if key.name == "seed")
    pieces = ["## The top level", _table([seed], "")]
    for name, block in hints.items():
        if not dataclasses.is_dataclass(block):
            continue
        kept = inspect.cleandoc(block.__doc__ or "").split("\n\n")[0]
        pieces += [f"## {name}", _code_spans(kept), _table(keys(block), f"{name}.")]
        for path, (options, module) in BLOCKS.items():
            if path.startswith(f"{name}."):
                pieces += [f"### {path}: the names", _names(options, module)]
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


def _comment(lines: list[str], at: int) -> str:
    beside = lines[at].partition("  # ")[2]
    if beside:
        return beside
    above = lines[at - 1].strip()
    return above.removeprefix("# ") if above.startswith("# ") else ""


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _table(rows: Any, prefix: str) -> str:
    head = "| key | type | default | |\n| --- | --- | --- | --- |\n"
    return head + "\n".join(
        f"| `{prefix}{key.name}` | {key.kind} "
        f"| {'*needed*' if key.default is None else f'`{key.default}`'} | {_cell(key.says)} |"
        for key in rows
    )


def _names(options: Mapping[str, Callable[..., Any]], module: str | None) -> str:
    rows = []
    for name, constructor in options.items():
        shown = f"`{name}`"
        if module is not None:
            shown = f"{{py:obj}}`{name} <{module}.{constructor.__name__}>`"
        parameters = inspect.signature(constructor).parameters
        given = [
            f"`{key}`" if p.default is p.empty else f"`{key} = {_plain(p.default)}`"
            for key, p in parameters.items()
            if key not in NOT_ARGUMENTS
        ]
        rows.append(f"| {shown} | {', '.join(given)} |")
    return "| name | arguments |\n| --- | --- |\n" + "\n".join(rows)


def _code_spans(text: str) -> str:
    return textwrap.dedent(text).replace("*", r"\*")


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
