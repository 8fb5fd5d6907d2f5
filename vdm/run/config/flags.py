"""The config of a command: from a file with the command's own values, or from the workdir."""

import ast
import contextlib
import dataclasses
import pathlib
import sys
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from vdm.choices import unknown
from vdm.run.config import blocks, fields, kept, own, parse
from vdm.run.config.rules import Name
from vdm.run.config.schema import Config
from vdm.run.errors import UserError


def read_config(words: Sequence[str]) -> Config:
    """Return the config of `--config=FILE --config.key=value ...`, for scripts."""
    path = next((a.removeprefix("--config=") for a in words if a.startswith("--config=")), None)
    overrides = [a for a in words if not a.startswith("--config=")]
    return config(path, pathlib.Path(), overrides)


def config(
    path: str | None,
    workdir: pathlib.Path,
    overrides: list[str],
    default: ConfigDict | None = None,
    *,
    command: str = "train",
) -> Config:
    """Return the config of a file, or else the default, or the workdir's where there is none."""
    for word in overrides:
        if not word.startswith("--config."):
            raise UserError(f"unrecognised argument {word!r}: see `vdm {command} --help`")
    if path is None and default is None:
        if overrides:
            raise UserError(f"{overrides[0]} needs --config=FILE")
        return kept.load(workdir)
    if path is not None and not pathlib.Path(path).is_file():
        raise UserError(f"no config file {path!r}")
    file = [] if path is None else [f"--config={path}"]
    values = _parse_flags(file, None if file else default)
    if not isinstance(values, ConfigDict):
        raise UserError(f"config file {path!r}: get_config() must return a ConfigDict")
    texts = dict(word.removeprefix("--config.").partition("=")[::2] for word in overrides)
    arguments = {key: text for key, text in texts.items() if _is_added(values, key, texts)}
    overrides = [word for word in overrides if _key(word) not in arguments]
    for word in overrides:
        _check_key(values, _key(word), texts)
    values = _parse_flags([*file, *overrides], None if file else default)
    for key, text in arguments.items():
        _set(values, key, text)
    made = parse.from_dict(values.to_dict())
    if path is not None and not made.train.own_parts and kept.names_own_parts(made):
        folder = str(pathlib.Path(path).resolve().parent)
        made = dataclasses.replace(made, train=dataclasses.replace(made.train, own_parts=folder))
    own.make_importable(pathlib.Path(made.train.own_parts))
    return made


def _parse_flags(arguments: list[str], default: ConfigDict | None = None) -> ConfigDict:
    argv, values = ["vdm", *arguments], flags.FlagValues()
    # The file is executed as a module of this name, which would still hold what the last file of
    # this process has defined.
    sys.modules.pop("config_config", None)
    if default is None:
        config_flags.DEFINE_config_file(
            "config", flag_values=values, lock_config=True, sys_argv=argv
        )
    else:
        config_flags.DEFINE_config_dict("config", default, flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)
        if len(rest) > 1:
            raise UserError(f"unrecognised argument {rest[1]!r}: see `vdm train --help`")
        return values["config"].value
    except flags.Error as error:
        text = str(error)
        if "Traceback" in text:  # of get_config() itself: its last line says what happened
            text = f"{arguments[0]}: {text.strip().splitlines()[-1]}"
        raise UserError(" ".join(text.split())) from error
    except UserError:
        raise
    # The config file is the user's code: whatever it raises, the user has to fix.
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}"
        if "get_config" in reason:
            reason = "it has no function get_config()"
        raise UserError(
            f"cannot read {arguments[0].removeprefix('--config=')}: {reason}"
        ) from error


def _key(word: str) -> str:
    return word.removeprefix("--config.").partition("=")[0]


def _is_added(values: ConfigDict, key: str, texts: Mapping[str, str]) -> bool:
    """Return whether a key is an argument that a block of the file lacks, or one with a list.

    The flags of ml_collections set only what is there, and to a value of the type that is there.
    """
    of_block, _, word = key.rpartition(".")
    listed = texts[key].startswith(("(", "["))
    there = _block(values, of_block)
    return word in _arguments(there, of_block, texts) and (listed or word not in there)


def _block(values: ConfigDict, key: str) -> Collection[str]:
    """Return the block of a key in the config, an empty one where there is none."""
    block: object = values
    for name in key.split("."):
        block = block[name] if isinstance(block, ConfigDict) and name in block else None
    return block if isinstance(block, ConfigDict) else ()


def _arguments(block: Any, key: str, texts: Mapping[str, str]) -> Collection[str]:
    """Return the arguments of the part of this package that a block names, with the overrides."""
    if not isinstance(block, ConfigDict):
        return ()
    outer, _, name = key.partition(".")
    kinds = typing.get_type_hints(Config)
    rules = {field.name: field.rule for field in fields.of(kinds[outer])} if outer in kinds else {}
    rule = rules.get(name)
    chosen = texts.get(f"{key}.name", block.get("name"))
    if not isinstance(rule, Name) or chosen not in rule.options:
        return ()
    return blocks.parameters(rule.options[chosen])


def _set(values: ConfigDict, key: str, text: str) -> None:
    """Set an argument of a block to a literal of Python, or to the text that is none."""
    *path, word = key.split(".")
    block = values
    for name in path:
        block = block[name]
    value: object = text
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        value = ast.literal_eval(text)
    with block.unlocked(), block.ignore_type():
        block[word] = value


def _check_key(values: ConfigDict, key: str, texts: Mapping[str, str]) -> None:
    """Raise UserError, with the nearest valid key, unless the config has the key."""
    block: object = values
    prefix = ""
    for name in key.split("."):
        if not isinstance(block, ConfigDict) or name not in block:
            names = list(block) if isinstance(block, ConfigDict) else []
            names += [word for word in _arguments(block, prefix[:-1], texts) if word not in names]
            known = unknown("config key", prefix + name, [prefix + n for n in names])
            raise UserError(
                f"{known} (a command can set only keys that the config file has, and arguments of "
                "its blocks)"
            )
        block = block[name]
        prefix += f"{name}."
