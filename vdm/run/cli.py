"""The command line: what each command does with its options."""

import argparse
import contextlib
import dataclasses
import errno
import functools
import io
import sys
from collections.abc import Sequence

from vdm.choices import unknown
from vdm.run import arguments, overrides, shared
from vdm.run.compression import outcome
from vdm.run.config import flags, words as known
from vdm.run.config.flags import read_config as read_config  # for scripts
from vdm.run.config.rules import Words, split_words
from vdm.run.errors import UserError, one_line
from vdm.run.outline import COMMANDS
from vdm.run.system import lost, processes
from vdm.run.system.signals import Terminated, end_by_sigterm, sigterm_leaves

# A full disk, no rights, a name too long, too many files: not our mistakes.
OF_THE_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.EPIPE),
}
EXIT_INCOMPLETE = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143  # 128 + SIGTERM, which schedulers expect from a job that they ended


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, 0 for success."""
    try:
        options, rest = _parsed(sys.argv[1:] if words is None else words)
        addresses = (options.coordinator, options.num_processes, options.process_index)
        watched: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if options.distributed or any(value is not None for value in addresses):
            processes.start(*addresses)
            if options.command != "train":
                end_by_sigterm()
            watched = lost.ends_all(functools.partial(_advice, options))
        with watched:
            return RUN[options.command](options, rest)
    except UserError as error:
        return _refused(str(error))
    except MemoryError as error:  # of an array that a file or an option asks for
        return _refused(f"not enough memory: {error}")
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        named = "" if error.filename is None else f"{error.filename}: "
        return _refused(f"{named}{error.strerror or error}")
    except KeyboardInterrupt:
        print("vdm: interrupted; run the same command to start again or resume", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Terminated as stop:
        print(f"vdm: {stop}; run the same command to resume from there", file=sys.stderr)
        return EXIT_TERMINATED


def _advice(options: argparse.Namespace) -> str:
    """Return what to do when another process of this command has gone."""
    if options.command != "train":
        return "run the same command again"
    from vdm.run.workdir import checkpoint

    step = checkpoint.latest_step(options.workdir)
    if not step:
        return "there is no checkpoint yet: run the same command to start again"
    return f"the last checkpoint is of step {step}: run the same command to resume from there"


def _refused(text: str) -> int:
    print(one_line(f"vdm: {text}"), file=sys.stderr)
    return EXIT_USER_ERROR


def _parsed(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options and what is left of the words; raises UserError for a bad option."""
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise UserError(unknown("command", words[0], COMMANDS))
    for word in words:
        # For argparse of Python 3.11 it is no value, and the option an empty list.
        if word.startswith("--") and word.endswith("=--") and not word.startswith("--config."):
            raise UserError(f"argument {word.removesuffix('=--')}: expected a value, got '--'")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return arguments.parser().parse_known_args(words)
    except SystemExit as stop:
        if not stop.code:  # --help and --version
            raise
        # argparse prints all options before its one line.
        line = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        command = f" {words[0]}" if words and not words[0].startswith("-") else ""
        raise UserError(f"{line}; see `vdm{command} --help`") from None


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    config = flags.config(options.config, options.workdir, rest)
    shared.check_topology(options)
    from vdm.run import data, dry_run, train
    from vdm.run.training import parts

    if options.config is None:
        config = data.located(config, options.workdir)
    if options.init_from is not None:
        train_config = dataclasses.replace(config.train, init_from=options.init_from)
        config = dataclasses.replace(config, train=train_config)

    if options.dry_run:
        lines = shared.dry(options, lambda absent: dry_run.describe(parts.prepare(config, absent)))
        shared.print_dry(options, "trained", lines)
        return 0
    state = train.train(config, options.workdir)
    shared.say(f"trained to step {int(state.step)}: {options.workdir}")
    return 0


def _evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    shared.no_more(rest)
    from vdm.run import dry_run, evaluate, trained
    from vdm.run.evaluation import files, table as tables

    shared.check_split(options)
    shared.check_topology(options)
    run = trained.load(options.workdir, options.params)
    settings = overrides.override(run.config.evaluate, options)
    overrides.check_used(settings, options, integers=run.model.likelihood.bounds is not None)
    if options.dry_run:
        lines = shared.dry(options, lambda absent: dry_run.of_evaluation(run, settings, absent))
        shared.print_dry(options, "evaluated", lines)
        return 0
    folder = shared.folder(options.workdir)
    evaluation = evaluate.measure(run, options.split, settings, folder)
    if processes.is_first():
        tables.show(evaluation.results)
    shared.say(f"written to {folder / files.RESULT_FILE}")
    return 0


def _score(options: argparse.Namespace, rest: list[str]) -> int:
    shared.no_more(rest)
    from vdm.run import score, trained
    from vdm.run.data import chosen
    from vdm.run.scoring import files, scores, summary

    out = options.out or shared.folder(options.workdir) / "scores.csv"
    files.check_target(out, options.source)
    run = trained.load(options.workdir, options.params)
    bound = options.bound or split_words(run.config.evaluate.bound)[0]
    settings = overrides.override(scores.settings_of(run, bound, {}), options)
    overrides.check_used(settings, options, integers=run.model.likelihood.bounds is not None)
    asked = chosen.of(options)
    scored = score.score(run, options.source, out, settings, shared.folder(options.workdir), asked)
    if processes.is_first():
        summary.show(*scored)
    shared.say(f"written to {out}")
    return 0


def _infer(options: argparse.Namespace, rest: list[str]) -> int:
    shared.no_more(rest)
    from vdm.run import inferring

    return inferring.infer(options)


def _fit_chain(options: argparse.Namespace, rest: list[str]) -> int:
    shared.no_more(rest)
    from vdm.run import fit_chain, trained

    run = trained.load(options.workdir, options.params, devices=trained.one_device())
    settings = overrides.override(run.config.few_steps, options)
    folder = shared.folder(options.workdir)
    lines = fit_chain.fit(run, settings, folder)
    shared.print_lines(f"{folder}: chains of step {run.step} ({run.kind})", lines)
    return 0


def _sample(options: argparse.Namespace, rest: list[str]) -> int:
    shared.no_more(rest)
    from vdm.run import sampling

    return sampling.draw(options)


def _report(options: argparse.Namespace, rest: list[str]) -> int:
    shared.no_more(rest)
    named = [] if options.workdir is None else [options.workdir]
    workdirs = [*named, *options.workdirs]
    if not workdirs or (named and options.workdirs):
        raise UserError(
            "a report needs one run or several: expected --workdir=RUN or RUN ..., got "
            f"{'both' if workdirs else 'neither'}"
        )
    shared.check_num(arguments.NUM_ON_PAGE, options.num)
    from vdm.run.report import write

    shared.say(f"written to {write.write(workdirs, options.out, options.num)}")
    return 0


def _import(options: argparse.Namespace, rest: list[str]) -> int:
    from vdm.run import importing

    if options.format not in known.FORMATS:
        raise UserError(unknown("--format", options.format, known.FORMATS))
    default = importing.official_values()
    config = flags.config(options.config, options.workdir, rest, default, command="import")
    stated = {word.removeprefix("--config.").split("=")[0] for word in rest}
    run = importing.prepare(options.path, config, stated)
    importing.write(run, options.workdir)
    shared.print_lines(f"{options.path}: imported into {options.workdir}", run.lines)
    return 0


def _export(options: argparse.Namespace, rest: list[str]) -> int:
    shared.no_more(rest)
    names = () if options.programs == "none" else split_words(options.programs)
    problem = Words(known.PROGRAMS).problem("--programs", ",".join(names)) if names else None
    if problem is not None:
        raise UserError(f"{problem}, or none")
    from vdm.run import export, trained
    from vdm.run.system.progress import say
    from vdm.run.workdir import chains

    run = trained.load(options.workdir, options.params)
    lines = export.write(run, options.workdir, options.out, names)
    if options.out.suffix and (options.workdir / chains.FOLDER).is_dir():
        say(f"the chains of {options.workdir} are not in one file: a folder would have them")
    shared.print_lines(f"{options.workdir}: exported to {options.out}", lines)
    return 0


def _demo(options: argparse.Namespace, rest: list[str]) -> int:
    shared.no_more(rest)
    from vdm.run import packaged

    packaged.write(options.workdir)
    shared.say(f"a trained run is in {options.workdir}: try")
    for command in ("sample", "report"):
        shared.say(f"  vdm {command} --workdir={options.workdir}")
    return 0


def _compress(options: argparse.Namespace, rest: list[str]) -> int:
    shared.no_more(rest)
    from vdm.run import compress, trained
    from vdm.run.compression import files, steps
    from vdm.run.data import chosen

    source = files.read(options.source)
    if options.out.exists() and options.out.samefile(options.source):
        raise UserError(f"OUT is the same file as IN, {options.out}: expected another OUT")
    run = trained.load(options.workdir, devices=trained.one_device())
    settings = overrides.override(run.config.compress, options)
    kept, which = steps.choose(
        shared.folder(options.workdir),
        run.params,
        settings,
        exactly=options.num_steps is not None,
        required=options.chain is True,
    )
    shared.say(f"compressing with {which}")
    with sigterm_leaves():
        made = compress.compress(
            run,
            source,
            options.out,
            settings,
            kept,
            chosen.of(options),
            unconditional=options.unconditional,
        )
    outcome.show_compressed(made)
    shared.say(f"written to {options.out}")
    return 0


def _decompress(options: argparse.Namespace, rest: list[str]) -> int:
    shared.no_more(rest)
    from vdm.run import compress, trained

    run = trained.load(options.workdir, devices=trained.one_device())
    folder = shared.folder(options.workdir)
    with sigterm_leaves():
        restored = compress.decompress(
            run, folder, options.source, options.out, recover=options.recover
        )
    shared.say(
        f"{restored.num_examples} examples, {restored.seconds:.1f} s: written to {options.out}"
    )
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


RUN = {
    "train": _train,
    "evaluate": _evaluate,
    "score": _score,
    "infer": _infer,
    "fit-chain": _fit_chain,
    "sample": _sample,
    "report": _report,
    "import": _import,
    "export": _export,
    "demo": _demo,
    "compress": _compress,
    "decompress": _decompress,
}
