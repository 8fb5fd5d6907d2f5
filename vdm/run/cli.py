"""The command line: train, evaluate, sample, report, import, compress, decompress."""

import argparse
import dataclasses
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.table import Table

from vdm.choices import unknown
from vdm.run import arguments, config as configs, processes
from vdm.run.errors import UserError
from vdm.run.files import check_writable
from vdm.run.signals import Terminated, end_by_sigterm, sigterm_leaves

EXIT_INCOMPLETE = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143  # 128 + SIGTERM, what schedulers expect of a job that they have ended


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, 0 for success."""
    options, rest = arguments.parser().parse_known_args(sys.argv[1:] if words is None else words)
    addresses = (options.coordinator, options.num_processes, options.process_index)
    try:
        if options.distributed or any(value is not None for value in addresses):
            processes.start(*addresses)
            if options.command != "train":
                end_by_sigterm()
        return COMMANDS[options.command](options, rest)
    except UserError as error:
        print(f"vdm: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("vdm: interrupted; the same command starts or goes on again", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Terminated as stop:
        print(f"vdm: {stop}; the same command goes on from there", file=sys.stderr)
        return EXIT_TERMINATED


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    config = _config(options.config, options.workdir, rest)
    from vdm.run import dry_run, parts, train

    if options.dry_run:
        lines = dry_run.describe(parts.prepare(config))
        if processes.is_first():
            _print_lines(f"{options.workdir}: nothing was run", lines)
        return 0
    state = train.train(config, options.workdir)
    _say(f"trained to step {int(state.step)}: {options.workdir}")
    return 0


def _evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    _no_more(rest)
    from vdm.run import evaluate, tables, trained

    run = trained.load(options.workdir, options.params)
    settings = _override(run.config.evaluate, options)
    _check_used(settings, options, integers=run.model.likelihood.bounds is not None)
    record = evaluate.evaluate(run, options.split, settings, options.workdir)
    if processes.is_first():
        tables.show(record["results"])
    _say(f"written to {options.workdir / evaluate.RESULT_FILE}")
    return 0


def _sample(options: argparse.Namespace, rest: list[str]) -> int:
    _no_more(rest)
    from vdm.run import build, data, figures, sample, trained

    run = trained.load(options.workdir)
    settings = _override(run.config.sample, options)
    build.check_sampling(run.model, settings)
    dataset = data.load(run.config.data, "train")
    out = options.out or options.workdir / "samples.png"
    # Refused before the work, not after.
    figures.kind(out, dataset.shape, build.levels(run.model))
    processes.first_alone(lambda: check_writable(out.parent))
    sample.save(sample.sample(run, options.num, settings), run, out, dataset)
    _say(f"written to {out}")
    return 0


def _report(options: argparse.Namespace, rest: list[str]) -> int:
    _no_more(rest)
    named = [] if options.workdir is None else [options.workdir]
    workdirs = [*named, *options.workdirs]
    if not workdirs or (named and options.workdirs):
        raise UserError(
            "a report is on one run or several: expected --workdir=RUN or RUN ..., got "
            f"{'both' if workdirs else 'neither'}"
        )
    if options.num < 0:
        raise UserError(f"--num must be at least 0: got {options.num}")
    from vdm.run.report import write

    _say(f"written to {write.write(workdirs, options.out, options.num)}")
    return 0


def _import(options: argparse.Namespace, rest: list[str]) -> int:
    from vdm.run import importing

    if options.format not in importing.FORMATS:
        raise UserError(unknown("--format", options.format, importing.FORMATS))
    default = importing.official_values()
    config = _config(options.config, options.workdir, rest, default, command="import")
    stated = {word.removeprefix("--config.").split("=")[0] for word in rest}
    run = importing.prepare(options.path, config, stated)
    importing.write(run, options.workdir)
    _print_lines(f"{options.path}: imported into {options.workdir}", run.lines)
    return 0


def _compress(options: argparse.Namespace, rest: list[str]) -> int:
    _no_more(rest)
    from vdm.run import compress, contents, data, tables, trained

    source = contents.read(options.source)
    if options.out.exists() and options.out.samefile(options.source):
        raise UserError(f"{options.out} is what is to be compressed: expected another OUT")
    run = trained.load_without_data(options.workdir)
    settings = _override(run.config.compress, options)
    configs.check_compress(settings)
    shape = data.kept_shape(options.workdir)
    with sigterm_leaves():
        made = compress.compress(run, shape, source, options.out, settings)
    tables.show_compressed(made)
    _say(f"written to {options.out}")
    return 0


def _decompress(options: argparse.Namespace, rest: list[str]) -> int:
    _no_more(rest)
    from vdm.run import compress, data, trained

    run = trained.load_without_data(options.workdir)
    shape = data.kept_shape(options.workdir)
    with sigterm_leaves():
        restored = compress.decompress(
            run, shape, options.source, options.out, recover=options.recover
        )
    _say(f"{restored.num_examples} examples, {restored.seconds:.1f} s: written to {options.out}")
    if not restored.missing:
        return 0
    lost = ", ".join(
        f"{rows.start} to {rows.stop - 1}" if len(rows) > 1 else f"{rows.start}"
        for rows in restored.missing
    )
    print(
        f"vdm: these examples are lost (zeros in an array, no files in a folder): {lost}",
        file=sys.stderr,
    )
    return EXIT_INCOMPLETE


COMMANDS = {
    "train": _train,
    "evaluate": _evaluate,
    "sample": _sample,
    "report": _report,
    "import": _import,
    "compress": _compress,
    "decompress": _decompress,
}


def read_config(words: Sequence[str]) -> configs.Config:
    """Return the config of `--config=FILE --config.key=value ...`, for scripts."""
    path = next((a.removeprefix("--config=") for a in words if a.startswith("--config=")), None)
    overrides = [a for a in words if not a.startswith("--config=")]
    return _config(path, pathlib.Path(), overrides)


def _config(
    path: str | None,
    workdir: pathlib.Path,
    overrides: list[str],
    default: ConfigDict | None = None,
    *,
    command: str = "train",
) -> configs.Config:
    """Return the config of a file, or else the default, or the workdir's where there is none."""
    for word in overrides:
        if not word.startswith("--config."):
            raise UserError(f"unrecognised argument {word!r}: see `vdm {command} --help`")
    if path is None and default is None:
        if overrides:
            raise UserError(f"{overrides[0]} needs --config=FILE")
        return configs.load(workdir)
    if path is not None and not pathlib.Path(path).is_file():
        raise UserError(f"no config file {path!r}")
    file = [] if path is None else [f"--config={path}"]
    values = _parse_flags(file, None if file else default)
    if not isinstance(values, ConfigDict):
        raise UserError(f"config file {path!r}: get_config() must return a ConfigDict")
    for word in overrides:
        _check_key(values, word.removeprefix("--config.").split("=")[0])
    values = _parse_flags([*file, *overrides], None if file else default)
    return configs.from_dict(values.to_dict())


def _parse_flags(arguments: list[str], default: ConfigDict | None = None) -> ConfigDict:
    argv, values = ["vdm", *arguments], flags.FlagValues()
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
    # The config file is the user's code: whatever it raises is theirs to mend.
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}"
        if "get_config" in reason:
            reason = "it has no function get_config()"
        raise UserError(
            f"cannot read {arguments[0].removeprefix('--config=')}: {reason}"
        ) from error


def _check_key(values: ConfigDict, key: str) -> None:
    """Raise UserError, with the nearest valid key, unless the config has the key."""
    block: Any = values
    prefix = ""
    for name in key.split("."):
        if not isinstance(block, ConfigDict) or name not in block:
            names = list(block) if isinstance(block, ConfigDict) else []
            known = unknown("config key", prefix + name, [prefix + n for n in names])
            raise UserError(f"{known} (only what the config file has can be set here)")
        block = block[name]
        prefix += f"{name}."


# What each option of `vdm evaluate` is for, where that is not every bound.
OPTIONS = {
    "vlb": ("num_steps", "law", "levels_per_example", "clip_denoised"),
    "ode": (
        "dequantisation",
        "num_samples",
        "divergence",
        "num_probes",
        "ode_steps",
        "tolerance",
    ),
}


def _override(settings: Any, options: argparse.Namespace) -> Any:
    """Return the settings with what the command says in place of the config."""
    given = _given(settings, options)
    for name, value in given.items():
        word = "steps" if name == "num_steps" else name
        lowest = 0 if name in ("ode_steps", "resolution") else 1
        if type(value) is int and name != "seed" and value < lowest:
            raise UserError(f"--{word} must be at least {lowest}: got {value}")
        if type(value) is float and not math.isfinite(value):
            raise UserError(f"--{word} must be finite: got {value}")
        if name == "tolerance" and not value > 0:
            raise UserError(f"--tolerance must be positive: got {value}")
    return dataclasses.replace(settings, **given)


def _given(settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Return what the command says of the settings."""
    names = [field.name for field in dataclasses.fields(settings)]
    values = {name: getattr(options, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _check_used(settings: Any, options: argparse.Namespace, *, integers: bool) -> None:
    """Raise UserError for an option of the command that would do nothing."""
    given = _given(settings, options)
    for bound, names in OPTIONS.items():
        unused = [name for name in names if name in given]
        if unused and bound not in settings.bound.split(","):
            raise UserError(f"--{unused[0]} needs --bound={bound}: got --bound={settings.bound}")
    if "num_probes" in given and settings.divergence == "exact":
        raise UserError("--num_probes is for --divergence=hutchinson: the exact one has no probes")
    if "tolerance" in given and settings.ode_steps:
        raise UserError("--tolerance is for steps that adapt: expected --ode_steps=0 beside it")
    if not integers and (unused := [n for n in ("dequantisation", "num_samples") if n in given]):
        raise UserError(
            f"--{unused[0]} is for integer data: there is nothing to draw for real numbers"
        )


def _no_more(rest: list[str]) -> None:
    if rest:
        raise UserError(f"unrecognised argument {rest[0]!r}: see `vdm --help`")


def _say(text: str) -> None:
    if processes.is_first():
        print(text)


def _print_lines(title: str, lines: list[tuple[str, str]]) -> None:
    table = Table(title=title, show_header=False)
    for name, value in lines:
        table.add_row(name, value)
    Console().print(table)
