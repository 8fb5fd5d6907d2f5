"""The command line: the commands and their options."""

import argparse
import pathlib
from collections.abc import Collection
from typing import Any

from vdm.run.config import (
    CompressConfig,
    EvaluateConfig,
    FewStepsConfig,
    SampleConfig,
    fields,
    words,
)
from vdm.run.config.rules import Number, Word, Words
from vdm.run.config.schema import COLUMNS, RESAMPLE, TIMES
from vdm.run.outline import COMMANDS, outline

OF_THE_CONFIG = (
    "An option that is not given takes its value from the run's config; the defaults in brackets "
    "are those of a config without it."
)
USUAL_NUM = 64
USUAL_COLUMNS = 10
NUM_SAMPLES = Number(1, 2**31 - 1)  # sample i is drawn from i, a number of 32 bits
# One score for an example leaves no choice of these, and of one bound only.
NOT_SCORED = ("num_steps", "num_paths", "clip_denoised", "bound")
NUM_ON_PAGE = Number(0, 10_000)


def parser() -> argparse.ArgumentParser:
    """Return the parser; the parsed `command` is the command's name."""
    whole, commands = outline()

    train = _command(commands, "train")
    train.add_argument("--config", help="a config file; a workdir that holds a run needs none")
    train.epilog = "Any value of the config can be set: --config.train.num_steps=2000"
    _add_dry_run(train, "the run's parameters, FLOPs and memory, and train nothing")
    train.add_argument(
        "--init_from",
        metavar="RUN",
        help="workdir of a run to begin with, in place of new parameters (train.init_from)",
    )
    train.set_defaults(command="train")

    evaluate = _command(commands, "evaluate")
    evaluate.add_argument(
        "--split",
        default="test",
        help=f"split of the data set ({Word(words.SPLITS)}; default test)",
    )
    evaluate.add_argument(
        "--params",
        default="ema",
        help=f"parameters: averaged, or of the last step ({Word(words.PARAMS)}; default ema)",
    )
    _add_settings(evaluate, EvaluateConfig)
    _add_dry_run(evaluate, "what a call of the variational bound takes, and evaluate nothing")
    evaluate.set_defaults(command="evaluate")

    score = _command(commands, "score")
    score.add_argument(
        "source",
        metavar="IN",
        type=pathlib.Path,
        help=".npy, .npz with x (and labels, cond, cond_field), an image or a folder of images",
    )
    score.add_argument(
        "--params",
        default="ema",
        help=f"parameters: averaged, or of the last step ({Word(words.PARAMS)}; default ema)",
    )
    score.add_argument(
        "--out",
        type=pathlib.Path,
        help="a .csv or .npz file with a row for each example (default: scores.csv in the workdir)",
    )
    score.add_argument(
        "--bound",
        help=f"the variational bound, or that of the ODE ({Word(words.BOUNDS)}; default: the first "
        "one of the run's config)",
    )
    _add_conditions(score, "example", " (default: what IN holds)")
    _add_settings(score, EvaluateConfig, left_out=NOT_SCORED)
    score.set_defaults(command="score")

    infer = _command(commands, "infer")
    infer.add_argument(
        "source",
        metavar="IN",
        type=pathlib.Path,
        help=".npy, .npz with x, or what vdm score takes; with cond, calibration is shown too",
    )
    infer.add_argument(
        "--grid",
        required=True,
        metavar="LOW:HIGH:NUM",
        help="the grid of the condition, in the user's units; of two numbers two, with a comma",
    )
    infer.add_argument(
        "--out",
        type=pathlib.Path,
        help="a .csv file with a row for each point, its pictures beside it (default: profile.csv "
        "in the workdir)",
    )
    infer.add_argument(
        "--params",
        default="ema",
        help=f"parameters: averaged, or of the last step ({Word(words.PARAMS)}; default ema)",
    )
    infer.add_argument(
        "--num_samples",
        type=int,
        default=128,
        help="draws of noise for each point, the same for all; a multiple of 16 (default 128)",
    )
    infer.add_argument("--seed", type=int, default=0, help="of all draws (default 0)")
    infer.set_defaults(command="infer")

    fit_chain = _command(commands, "fit-chain")
    fit_chain.add_argument(
        "--params",
        default="ema",
        help="parameters: averaged, or of the last step, whose chains serve `vdm evaluate` alone "
        f"({Word(words.PARAMS)}; default ema)",
    )
    _add_settings(fit_chain, FewStepsConfig)
    fit_chain.set_defaults(command="fit-chain")

    sample = _command(commands, "sample")
    sample.add_argument(
        "--num",
        type=int,
        help=f"number of samples ({NUM_SAMPLES}; default {USUAL_NUM}; with several examples in "
        "--known a multiple of their number, default each once; of a film strip 8, of points 500)",
    )
    sample.add_argument(
        "--out",
        type=pathlib.Path,
        help="a .png or .npy file, or a new folder for a .png of each image of integers (default: "
        "samples.png in the workdir)",
    )
    _add_conditions(
        sample,
        "sample",
        " (default: the classes 0, 1, 2, ... in order, or conditions of training examples)",
    )
    sample.add_argument(
        "--known",
        metavar="FILE",
        type=pathlib.Path,
        help="fill in what is missing of this example, or of several: .npy, an image or a folder "
        "of images; its known entries are kept",
    )
    sample.add_argument(
        "--mask",
        metavar="FILE",
        type=pathlib.Path,
        help="a .npy with 1 where --known is known and 0 elsewhere, of the shape of an example, "
        "without or with channels, or one such mask for each",
    )
    sample.add_argument(
        "--resample",
        metavar="TIMES",
        type=int,
        help=f"take each step so often, so that what is filled in fits what is known ({TIMES}; "
        f"default {RESAMPLE})",
    )
    sample.add_argument(
        "--trajectory",
        metavar="COLUMNS",
        type=int,
        nargs="?",
        const=True,
        help="a film strip: a row for each sample, and x̂ at so many noise levels, from noise to "
        f"data ({COLUMNS}; default {USUAL_COLUMNS}, or all where the steps are fewer)",
    )
    sample.add_argument(
        "--chain",
        action="store_true",
        help="take the steps of a chain that `vdm fit-chain` has fitted, as many as --steps",
    )
    _add_settings(sample, SampleConfig)
    _add_dry_run(sample, "what a call of the sampler takes, and draw nothing")
    sample.set_defaults(command="sample")

    report = _command(commands, "report")
    report.add_argument(
        "workdirs",
        nargs="*",
        type=pathlib.Path,
        metavar="RUN",
        help="workdirs; several are compared",
    )
    report.add_argument(
        "--out",
        type=pathlib.Path,
        help="an .html file (default: report.html in the workdir; for several runs, "
        "comparison.html in the current folder)",
    )
    report.add_argument(
        "--num",
        type=int,
        default=16,
        help=f"samples drawn from each run, 0 for none ({NUM_ON_PAGE}; default 16)",
    )
    report.add_argument("--workdir", type=pathlib.Path, help="the run's folder, in place of RUN")
    report.set_defaults(command="report")

    bring = _command(commands, "import")
    bring.add_argument("path", type=pathlib.Path, metavar="PATH", help="the checkpoint file")
    bring.add_argument(
        "--format",
        required=True,
        help=f"the code that wrote it; official is google-research/vdm ({Word(words.FORMATS)})",
    )
    bring.add_argument(
        "--config", help="a config file with the data set; without it, the official CIFAR-10 one"
    )
    bring.epilog = "Any value of the config can be set: --config.data.name=cifar10"
    bring.set_defaults(command="import")

    export = _command(commands, "export")
    export.add_argument(
        "out", metavar="OUT", type=pathlib.Path, help="a .safetensors file, or a new folder"
    )
    export.add_argument(
        "--params",
        default="ema",
        help=f"parameters: averaged, or of the last step ({Word(words.PARAMS)}; default ema)",
    )
    every = ",".join(words.PROGRAMS)
    export.add_argument(
        "--programs",
        default=every,
        help=f"which programs a folder holds, or none ({Words(words.PROGRAMS)}; default {every})",
    )
    export.set_defaults(command="export")

    demo = _command(commands, "demo")
    demo.set_defaults(command="demo")

    compress = _command(commands, "compress")
    compress.add_argument(
        "source",
        metavar="IN",
        type=pathlib.Path,
        help=".npy, .npz of one array or x with labels, cond, cond_field, .png or a folder of .png",
    )
    compress.add_argument("out", metavar="OUT", type=pathlib.Path, help="the file to write")
    _add_conditions(compress, "example", " (default: what IN holds)")
    compress.add_argument(
        "--unconditional",
        action="store_true",
        help="without conditions, for a model that was trained with train.cond_dropout",
    )
    _add_settings(compress, CompressConfig)
    compress.set_defaults(command="compress")

    decompress = _command(commands, "decompress")
    decompress.add_argument(
        "source", metavar="FILE", type=pathlib.Path, help="a file written by vdm compress"
    )
    decompress.add_argument(
        "out",
        metavar="OUT",
        type=pathlib.Path,
        help="the file or folder to write, of the same kind as IN was",
    )
    decompress.add_argument(
        "--recover", action="store_true", help="restore the intact blocks of a damaged file"
    )
    decompress.set_defaults(command="decompress")

    for command in (infer, fit_chain, report, bring, export, demo, compress, decompress):
        command.set_defaults(distributed=False, coordinator=None)
        command.set_defaults(num_processes=None, process_index=None)
    given = (train, evaluate, score, infer, fit_chain, sample, bring, export, demo, compress)
    for command in (*given, decompress):
        command.add_argument("--workdir", type=pathlib.Path, required=True, help="the run's folder")
    for command in (train, evaluate, score, sample):
        several = command.add_argument_group("several processes, each running this command")
        several.add_argument(
            "--distributed",
            action="store_true",
            help="JAX finds the other processes itself (SLURM, Kubernetes, TPU pods)",
        )
        several.add_argument(
            "--coordinator", metavar="HOST:PORT", help="address of the first process"
        )
        several.add_argument("--num_processes", type=int, help="number of processes")
        several.add_argument("--process_index", type=int, help="number of this process, from 0")
    return whole


def _command(commands: Any, name: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=COMMANDS[name], allow_abbrev=False)


def _add_conditions(command: argparse.ArgumentParser, each: str, default: str) -> None:
    """Give a command the options of `vdm.run.data.chosen`."""
    command.add_argument("--label", type=int, help=f"the class of every {each}{default}")
    command.add_argument(
        "--cond", metavar="NUMBERS", help=f"the vector of every {each}, such as 0.3,0.8"
    )
    command.add_argument(
        "--cond_file",
        metavar="FILE",
        type=pathlib.Path,
        help=f"a row for each {each}, or one for all: .npy vectors, .npz with labels, cond and "
        "cond_field, or .csv with a header",
    )


def _add_dry_run(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--dry_run", action="store_true", help=f"print {what}")
    command.add_argument(
        "--topology",
        metavar="SLICE",
        help="devices of the dry run, not those that are here: a TPU slice such as v5e:4x4",
    )


def _add_settings(
    command: argparse.ArgumentParser, block: type, left_out: Collection[str] = ()
) -> None:
    """Give a command an option for every field of a block of the config, which replaces its value.

    Some fields may be left out. Without the option the value is None; see `vdm.run.overrides`.
    """
    command.epilog = OF_THE_CONFIG
    for field in (field for field in fields.of(block) if field.name not in left_out):
        flag, text = f"--{field.flag}", _help(field)
        if field.kind is bool:
            switch = argparse.BooleanOptionalAction
            command.add_argument(flag, dest=field.name, action=switch, help=text)
        else:
            command.add_argument(flag, dest=field.name, type=field.kind, help=text)


def _help(field: fields.Field) -> str:
    """Return what a field means, which values it takes and its default."""
    default = f"default {field.default:g}" if field.kind is float else f"default {field.default}"
    if field.kind is bool:
        default = f"default {'on' if field.default else 'off'}"
    takes = default if field.rule is None else f"{field.rule}; {default}"
    return f"{field.says} ({takes})".replace("%", "%%")
