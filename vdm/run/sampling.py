"""The command `vdm sample`: samples, partly known examples filled in, or a film strip."""

import argparse
import dataclasses
from typing import TYPE_CHECKING

from vdm.run import arguments, overrides, shared
from vdm.run.config.schema import RESAMPLE, TIMES, SampleConfig
from vdm.run.errors import UserError
from vdm.run.system import processes
from vdm.run.system.files import check_writable
from vdm.run.training import checks

if TYPE_CHECKING:  # it takes long to import, and not every command needs it
    from vdm.condition import Conditions
    from vdm.run.trained import Trained


def draw(options: argparse.Namespace) -> int:
    """Draw samples, fill in, or draw a film strip, as the options ask; returns the exit code."""
    from vdm.run import dry_run, figures, sample, trained
    from vdm.run.run import refuse_sets
    from vdm.run.workdir import chains

    shared.check_topology(options)
    _check_ways(options)
    run = trained.load(options.workdir)
    settings = overrides.override(run.config.sample, options)
    if options.known is not None or options.trajectory is not None:
        refuse_sets(run, "--known" if options.trajectory is None else "--trajectory")
    if options.known is not None:
        return _fill(options, run, settings)
    if options.trajectory is not None:
        return _film(options, run, settings)
    num = arguments.USUAL_NUM if options.num is None else options.num
    given = _given(options, run, num)
    chain = None
    if options.chain:  # what is not asked for is what a chain takes
        settings = dataclasses.replace(
            settings, sampler=options.sampler or "ancestral", grid=options.grid or "time"
        )
        sample.check_chain(settings)
        chain = chains.find(shared.folder(options.workdir), run.params, settings.num_steps).chain
    checks.check_sampling(run.model, settings)
    if options.dry_run:
        lines = shared.dry(options, lambda absent: dry_run.of_sampling(run, settings, absent))
        shared.print_dry(options, "drawn", lines)
        return 0
    out = options.out or shared.folder(options.workdir) / "samples.png"
    # An error before the work, not after.
    figures.kind(
        out, run.shape, run.model.likelihood.levels, of_sets=run.condition.points is not None
    )
    processes.first_alone(lambda: check_writable(out.parent))
    given = sample.with_numbers(run, num, given)
    drawn = sample.sample(run, num, settings, given=given, chain=chain)
    sample.save(drawn, run, out, given)
    shared.say(f"written to {out}")
    return 0


def _check_ways(options: argparse.Namespace) -> None:
    """Raise UserError for options of `vdm sample` that do not go together, or have no use."""
    if options.num is not None:
        shared.check_num(arguments.NUM_SAMPLES, options.num)
    if (options.known is None) != (options.mask is None):
        there, absent = ("mask", "known") if options.known is None else ("known", "mask")
        raise UserError(f"--{there} needs --{absent}: what is known of examples, and where")
    if options.resample is not None and options.known is None:
        raise UserError("--resample is for filling in: it needs --known and --mask")
    if options.resample is not None:
        shared.check_num(TIMES, options.resample, "--resample")
    asked = {"known": options.known, "trajectory": options.trajectory, "chain": options.chain}
    ways = [name for name, value in asked.items() if value is not None and value is not False]
    if len(ways) > 1:
        raise UserError(f"--{ways[0]} does not go with --{ways[1]}: expected one of the two")


def _given(options: argparse.Namespace, run: "Trained", num: int) -> "Conditions | None":
    """Return the condition of each sample, in the user's units; None where none is asked for."""
    from vdm.run.data import chosen
    from vdm.run.system.progress import say

    given = chosen.read(chosen.of(options), run.condition, num, run.shape, "sample (--num)")
    if given is None and options.known is None:
        for line in chosen.usual(run.condition):
            say(line)
    return given


def _fill(options: argparse.Namespace, run: "Trained", settings: SampleConfig) -> int:
    from vdm.run import dry_run, figures, sample
    from vdm.run.filling import fill, known as partly

    checks.check_sampling(run.model, settings)
    examples = partly.read(run, options.known, options.mask)
    num = partly.number(examples, options.num, arguments.USUAL_NUM)
    cond = fill.condition(run, num, _given(options, run, num))
    resample = options.resample or RESAMPLE
    if options.dry_run:
        lines = shared.dry(
            options, lambda absent: dry_run.of_filling(run, settings, resample, absent)
        )
        shared.print_dry(options, "filled in", lines)
        return 0
    out = options.out or shared.folder(options.workdir) / "samples.png"
    figures.kind(out, run.shape, run.model.likelihood.levels)
    processes.first_alone(lambda: check_writable(out.parent))
    drawn = fill.fill(run, examples, num, settings, cond=cond, resample=resample, progress=True)
    sample.save(drawn, run, out)
    shared.say(f"written to {out}")
    return 0


def _film(options: argparse.Namespace, run: "Trained", settings: SampleConfig) -> int:
    from vdm.run import dry_run
    from vdm.run.film import frames, strip

    checks.check_sampling(run.model, settings)
    columns = min(arguments.USUAL_COLUMNS, settings.num_steps + 1)
    if options.trajectory is not True:  # the option without a number
        columns = options.trajectory
    frames.positions(settings.num_steps, columns)
    out = options.out or shared.folder(options.workdir) / "film.png"
    num = strip.number(strip.kind(out, run.shape), options.num)
    cond = frames.condition(run, num, _given(options, run, num))
    if options.dry_run:
        lines = shared.dry(options, lambda absent: dry_run.of_film(run, settings, columns, absent))
        shared.print_dry(options, "drawn", lines)
        return 0
    processes.first_alone(lambda: check_writable(out.parent))
    film = frames.draw(run, num, columns, settings, cond=cond)
    processes.first_alone(lambda: strip.write(film, out, levels=run.model.likelihood.levels))
    shared.say(f"written to {out}")
    return 0
