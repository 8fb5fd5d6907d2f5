"""The training loop: flat, resumable, and it reports every problem."""

import contextlib
import functools
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from vdm.run import config as configs, data, figures, mesh as meshes, sample, validate
from vdm.run.config import Config
from vdm.run.config.words import VALIDATION
from vdm.run.data import condition as conditions, kept_conditions, side_file, validation
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import settle
from vdm.run.data.kept_conditions import CONDITIONS_FILE
from vdm.run.errors import UserError
from vdm.run.system import disk, lock, processes, signals
from vdm.run.system.ahead import made_ahead
from vdm.run.system.files import check_writable, sweep
from vdm.run.system.progress import bar, say
from vdm.run.trained import Trained
from vdm.run.training import (
    advice,
    finite,
    initial,
    parts,
    program as programs,
    statistics,
    throughput,
)
from vdm.run.training.batches import on_devices
from vdm.run.training.parts import Parts
from vdm.run.training.program import Program
from vdm.run.training.step import TrainState
from vdm.run.workdir import checkpoint, exported, metrics, phases, sessions


def train(
    config: Config,
    workdir: pathlib.Path,
    *,
    on_record: Callable[[Mapping[str, int | float]], None] | None = None,
) -> TrainState:
    """Train to config.train.num_steps, from the latest checkpoint if there is one.

    Writes the config, checkpoints, metrics (in bits per dimension), grids of samples, versions and
    hardware into the workdir, which no other run may hold. Raises UserError for a config that does
    not fit, for a workdir that cannot take the run, and for a loss that is not finite: then the
    last good checkpoint stays the latest. After SIGTERM it ends its step, saves, raises Terminated.
    With train.patience it may end before its last step, without an error. `on_record` is called in
    the first process with every record of metrics, numbers by name with the step among them.
    """
    every, began, asked = config.train, time.perf_counter(), config
    names = kept_conditions.names(workdir)
    made = processes.together(lambda: parts.prepare(asked, names=names))
    dataset, trainer, condition, mesh, example = made
    config = trainer.config
    program = programs.build(trainer, mesh, example)
    source = None
    read = functools.partial(initial.read, config, trainer, mesh, example)
    if every.init_from and not checkpoint.latest_step(workdir):
        source = processes.together(read)
    measured = functools.partial(statistics.measured, trainer=trainer, dataset=dataset)
    begin = functools.partial(_start, program=program, read=read, measured=measured, config=config)
    if every.sample_every:  # an error now, not at the first grid
        _check_drawn(every.sample_every, workdir, made)
    per_dispatch = programs.steps_per_dispatch(config, meshes.platform(mesh))
    with contextlib.ExitStack() as stack:
        claim = functools.partial(_claim, stack, config, workdir, made, program.template)
        writer = processes.first_alone(claim) or metrics.Nowhere()
        # After the claim, which says where a workdir holds another run.
        condition = processes.together(functools.partial(_scaled, made, workdir))
        made = made._replace(condition=condition)
        terminated = stack.enter_context(signals.sigterm())
        checkpoints = stack.enter_context(checkpoint.manager(workdir, kept=every.checkpoints_kept))
        state = begin(checkpoints, source)
        step, stop = int(state.step), terminated()
        if step == 0:
            if source is not None:
                say(initial.words(source, config, condition))
                source = None  # it is as large as the state itself
            unused = conditions.unused(trainer.model.network, dataset)
            unused += side_file.unused(dataset, config.data.path, trainer.model.network)
            for line in (dataset.taken, *unused, *advice.lines(trainer.model, dataset)):
                if line:
                    say(line)
        dataset = processes.together(lambda: settle(dataset, config.data.in_memory))
        full_speed = throughput.full_speed(trainer, mesh, program.layout.template, example)
        put = functools.partial(on_devices, dataset, condition, config, mesh)
        # At least as many as a dispatch takes: they are on the devices before it is made.
        upcoming = made_ahead(put(step), per_dispatch + 1)
        processes.first_alone(lambda: writer.start(step))
        # Not before: a run that was refused must leave nothing that the next one has to match.
        processes.first_alone(functools.partial(_keep, config, workdir, made, step))
        watch = _watch(stack, workdir, made, config, state, program.layout.release)
        over = None if watch is None else watch.over()
        new_session = functools.partial(sessions.Session, workdir, mesh, step, began)
        session = processes.first_alone(new_session) or sessions.Nowhere()
        window: list[dict[str, jax.Array]] = []
        reports: list[Report] = []
        started = time.perf_counter()
        advance = stack.enter_context(bar("train", every.num_steps, step))
        while step < every.num_steps and not stop and over is None:
            # A run resumed with another steps_per_dispatch is brought back to a multiple here.
            count = per_dispatch - step % per_dispatch
            state, step_metrics = program.step(state, [next(upcoming) for _ in range(count)])
            window.append(step_metrics)
            step, stop = step + count, terminated()
            save = stop or step == every.num_steps or step % every.checkpoint_every == 0
            watched = watch is not None and not stop and watch.due(step)
            drawn = every.sample_every and step % every.sample_every == 0 and not stop
            if save or watched or step % every.log_every == 0:
                reports.append(_report(step, window, state, program, save, save or watched))
                window = []
            # A report waits for one more dispatch, so that a device does not wait for the host;
            # unless nothing may be dispatched before what it leads to is done.
            at_once = watched or drawn or stop or step == every.num_steps
            at_once = at_once or not program.layout.copies
            problem = None
            while reports and (at_once or reports[0].step < step):
                report = reports.pop(0)
                values = report.values()
                problem = finite.problem(values, report.finite, report.step)
                if problem is not None:
                    break
                seconds = time.perf_counter() - started
                rates = throughput.rates(len(values["loss"]), seconds, every.batch_size, full_speed)
                record = {"step": report.step, **_means(values), **rates}
                if watch is not None and watched and report.step == step:
                    record |= watch.measure(state)
                    over = watch.over()
                writer.write(record)
                if on_record is not None and processes.is_first():
                    on_record(record)
                advance(report.step, _line(record, every.num_steps))
                started = time.perf_counter()
                if report.to_save is None and over is not None:
                    report = report._replace(to_save=program.layout.release(state))
                if report.to_save is not None:
                    checkpoint.save(checkpoints, report.to_save)
                    session.reached(report.step)
            if problem is not None:
                rollbacks = finite.next_rollback(problem, every.on_nan, state.rollbacks)
                state = begin(checkpoints)
                state = state._replace(rollbacks=rollbacks)
                step, stop = int(state.step), terminated()
                upcoming.close()
                upcoming = made_ahead(put(step), per_dispatch + 1)
                processes.first_alone(functools.partial(phases.back_to, workdir, step))
                if watch is not None:
                    watch.back_to(step)
                say(f"{problem}: rolled back to step {step}, resuming with other noise")
                writer.start(step)
                window, reports, started = [], [], time.perf_counter()
                continue
            if drawn:
                jax.block_until_ready(state)
                before = time.perf_counter()
                run = Trained(
                    config, trainer.model, mesh, state.ema, step, dataset.shape, condition
                )
                try:
                    sample.write(run, sample.GRID_SIZE, config.sample, _grid(workdir, step))
                except UserError as error:  # a picture on the way must not end the training
                    say(f"no grid of samples at step {step}: {error}")
                started += time.perf_counter() - before  # not counted in the rate of training
        upcoming.close()
    if over is not None:
        say(over)
    elif step < every.num_steps:
        raise signals.Terminated(f"stopped by SIGTERM at step {step}")
    return program.layout.release(state)


def _claim(
    stack: contextlib.ExitStack,
    config: Config,
    workdir: pathlib.Path,
    made: Parts,
    template: TrainState,
) -> metrics.Writer:
    """Take the workdir for this run, until the stack is left; returns where metrics go.

    Raises UserError for a workdir that cannot take the run; a new one is then removed again.
    """
    fresh = not workdir.exists()
    stack.enter_context(lock.held(workdir))  # what another run holds is not ours to remove
    try:
        step = checkpoint.latest_step(workdir)
        if exported.found(workdir) is not None:
            raise UserError(
                f"{workdir} holds an exported run, without an optimiser to resume with: begin with "
                f"it in another workdir, by --init_from={workdir}"
            )
        if configs.changes(config, workdir) and config.train.num_steps < step:
            raise UserError(
                f"train.num_steps is {config.train.num_steps:,}, but {workdir} holds a run of "
                f"{step:,} steps already"
            )
        data.check_kept(made.dataset, workdir)
        sweep(workdir)
        writer = metrics.Writer(workdir, tensorboard=config.train.tensorboard)
        stack.enter_context(contextlib.closing(writer))
        folder = checkpoint.folder_of(workdir)
        check_writable(folder)
        checkpoints = config.train.checkpoints_kept + (config.train.keep == "best")
        disk.check_room(folder, disk.num_bytes(template), checkpoints)
    except UserError:
        if fresh:
            shutil.rmtree(workdir, ignore_errors=True)
        raise
    return writer


def _scaled(made: Parts, workdir: pathlib.Path) -> Condition:
    """Return the run's condition, with the scales that the workdir keeps if it holds the run."""
    if not (workdir / CONDITIONS_FILE).exists():
        initial.check_scale(made.trainer.config, made.trainer.model.network, workdir)
        return made.condition
    kept = kept_conditions.read(workdir, made.trainer.model.network)
    own = not made.trainer.config.train.init_from
    return kept_conditions.resumed(made.condition, kept, workdir, own=own)


def _keep(config: Config, workdir: pathlib.Path, made: Parts, step: int) -> None:
    """Write what the run is made of from a step on, as a new phase where that has changed."""
    phases.back_to(workdir, step)
    if changes := configs.changes(config, workdir):
        say(f"a new phase from step {step} on: {'; '.join(changes)}")
        phases.begin(workdir, configs.load(workdir), config, step)
    configs.keep(config, workdir)
    data.keep(made.dataset, workdir, data.seen_from(workdir, config.data.path))
    kept_conditions.write(workdir, made.condition)


def _watch(
    stack: contextlib.ExitStack,
    workdir: pathlib.Path,
    made: Parts,
    config: Config,
    state: TrainState,
    release: Callable[[TrainState], TrainState],
) -> validate.Watch | None:
    """Return the validations of a run until the stack is left; None for a run without them."""
    if not config.train.validation_examples:
        return None
    best, step = None, int(state.step)
    if config.train.keep == "best":
        best = stack.enter_context(checkpoint.manager(workdir, kept=1, best=True))
    held_out = settle(
        processes.together(
            lambda: side_file.joined(
                validation.load(config, VALIDATION),
                config.data.path,
                made.trainer.model.network,
                made.condition.vector_names,
            )
        ),
        config.data.in_memory,
    )
    watch = validate.Watch(
        workdir, made.trainer, made.condition, held_out, made.mesh, step, best, release
    )
    if any(phase.step == step for phase in phases.read(workdir)):
        watch.back_to(step)  # what came later was of another phase
    watch.catch_up(state)
    return watch


def _start(
    checkpoints: ocp.CheckpointManager,
    source: initial.Source | None = None,
    *,
    program: Program,
    read: Callable[[], initial.Source],
    measured: Callable[[TrainState], TrainState],
    config: Config,
) -> TrainState:
    """Return the state of the latest checkpoint, or the first one where there is none, as held.

    That one begins with the `source`, by default what is read of train.init_from, or else with what
    is `measured` of the data.
    """
    hold = program.layout.hold
    state = checkpoint.resume(checkpoints, program.template)
    if state is not None:
        return hold(state)
    first = program.init()
    if not config.train.init_from:
        return hold(measured(first))
    return hold(initial.applied(first, source or processes.together(read), config))


class Report(NamedTuple):
    """What is to be told of the steps up to one, while their numbers are still on their way."""

    step: int
    metrics: list[dict[str, jax.Array]]
    finite: jax.Array | None  # whether the parameters are, where that is asked
    to_save: TrainState | None  # as in files

    def values(self) -> dict[str, np.ndarray]:
        """Return the metrics of the steps, once they are there."""
        found = jax.device_get(self.metrics)
        return {key: np.concatenate([one[key] for one in found]) for key in found[0]}


def _report(
    step: int,
    window: list[dict[str, jax.Array]],
    state: TrainState,
    program: Program,
    save: bool,
    check: bool,
) -> Report:
    """Return the report of a window of steps that ends in a state; waits for nothing."""
    of_params = finite.all_finite(state.params) if check else None
    for array in jax.tree.leaves((window, of_params)):
        array.copy_to_host_async()
    return Report(step, window, of_params, program.layout.release(state) if save else None)


def _means(values: dict[str, np.ndarray]) -> dict[str, float]:
    return {key: float(np.mean(value)) for key, value in values.items()}


def _line(record: Mapping[str, int | float], num_steps: int) -> str:
    rate = record["steps_per_second"]
    eta = (num_steps - record["step"]) / rate
    watched = f"validation {record['validation']:.3f}  " if "validation" in record else ""
    return (
        f"loss {record['loss']:.3f} bpd  {watched}{rate:.1f} steps/s  "
        f"ETA {int(eta // 60)}:{int(eta % 60):02d}"
    )


def _check_drawn(every: int, workdir: pathlib.Path, made: Parts) -> None:
    """Raise UserError for samples that are wanted every so often, but have no picture."""
    levels, of_sets = made.trainer.model.likelihood.levels, made.condition.points is not None
    try:
        figures.kind(_grid(workdir, 0), made.dataset.shape, levels, of_sets=of_sets)
    except UserError as error:
        raise UserError(f"train.sample_every is {every}: {error}") from error


def _grid(workdir: pathlib.Path, step: int) -> pathlib.Path:
    return workdir / "samples" / f"step_{step:06d}.png"
