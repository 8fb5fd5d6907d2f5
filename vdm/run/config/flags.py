"""The config of a command: from a file with the command's own values, or from the workdir."""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from vdm.choices import unknown
from vdm.run.config import kept, own, parse
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
    for word in overrides:
        _check_key(values, word.removeprefix("--config.").split("=")[0])
    values = _parse_flags([*file, *overrides], None if file else default)
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


def _check_key(values: ConfigDict, key: str) -> None:
    """Raise UserError, with the nearest valid key, unless the config has the key."""
    block: object = values
    prefix = ""
    for name in key.split("."):
        if not isinstance(block, ConfigDict) or name not in block:
            names = list(block) if isinstance(block, ConfigDict) else []
            known = unknown("config key", prefix + name, [prefix + n for n in names])
            raise UserError(f"{known} (a command can set only keys that the config file has)")
        block = block[name]
        prefix += f"{name}."
