"""The training loop: flat, resumable, and silent about nothing."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vdm.run import (
    build,
    checkpoint,
    condition,
    config as configs,
    data,
    disk,
    figures,
    finite,
    lock,
    metrics,
    sample,
    signals,
    throughput,
)
from vdm.run.batches import batches, make_batch
from vdm.run.config import Config
from vdm.run.errors import UserError
from vdm.run.progress import bar, say
from vdm.run.step import Batch, TrainState, init_state, train_step
from vdm.run.trained import Trained


def train(config: Config, workdir: pathlib.Path) -> TrainState:
    """Train to config.train.num_steps, from the latest checkpoint if there is one.

    Writes the config, checkpoints, metrics (in bits per dimension) and pages of samples into
    the workdir, which no other run may hold. Raises UserError for a config that does not fit,
    for a workdir that cannot take the run, and for a loss that is not finite: then the last
    good checkpoint stays the latest. After SIGTERM it ends its step, saves, raises Terminated.
    """
    every = config.train
    dataset = data.load(config.data, "train")
    if every.batch_size > len(dataset):
        raise UserError(
            f"train.batch_size is {every.batch_size}, but the train split of "
            f"{dataset.name} has {len(dataset)} examples"
        )
    trainer = build.trainer(config, dataset)
    told = condition.build(trainer.model.network, dataset, config.data.augment)
    if every.sample_every:  # refused now, not at the first page
        figures.kind(_page(workdir, 0), dataset.shape, dataset.levels)

    batch = make_batch(dataset, told, config, 0)
    init_fn = functools.partial(init_state, trainer)
    step_fn = jax.jit(functools.partial(train_step, trainer=trainer), donate_argnums=0)
    with (
        lock.held(workdir),
        signals.sigterm() as terminated,
        contextlib.closing(metrics.Writer(workdir, tensorboard=every.tensorboard)) as writer,
        checkpoint.manager(workdir, kept=every.checkpoints_kept) as checkpoints,
    ):
        configs.keep(config, workdir)
        size = disk.num_bytes(jax.eval_shape(init_fn, batch))
        disk.check_room(checkpoint.folder_of(workdir), size, every.checkpoints_kept)
        state = _start(checkpoints, init_fn, batch)
        step, stop = int(state.step), terminated()
        full_speed = throughput.full_speed(trainer, state, batch)
        upcoming = batches(dataset, told, config, step)
        writer.start(step)
        window: list[dict[str, Any]] = []
        started = time.perf_counter()
        with bar("train", every.num_steps, step) as advance:
            while step < every.num_steps and not stop:
                state, step_metrics = step_fn(state, next(upcoming))
                window.append(step_metrics)
                step, stop = step + 1, terminated()
                save = stop or step == every.num_steps or step % every.checkpoint_every == 0
                if save or step % every.log_every == 0:
                    values = _fetch(window)
                    problem = finite.problem(values, state.params if save else None, step)
                    if problem is not None:
                        rollbacks = finite.next_rollback(problem, every.on_nan, state.rollbacks)
                        state = _start(checkpoints, init_fn, batch)
                        state = state._replace(rollbacks=rollbacks)
                        step = int(state.step)
                        upcoming = batches(dataset, told, config, step)
                        say(f"{problem}: back to step {step}, from there with other noise")
                        writer.start(step)
                        window, started = [], time.perf_counter()
                        continue
                    seconds = time.perf_counter() - started
                    rates = throughput.rates(len(window), seconds, every.batch_size, full_speed)
                    record = {"step": step, **_means(values), **rates}
                    writer.write(record)
                    advance(step, _line(record, every.num_steps))
                    window, started = [], time.perf_counter()
                if save:
                    checkpoint.save(checkpoints, state)
                if every.sample_every and step % every.sample_every == 0 and not stop:
                    jax.block_until_ready(state)
                    before = time.perf_counter()
                    run = Trained(config, trainer.model, state.ema, step)
                    sample.write(run, sample.PAGE, config.sample, _page(workdir, step), dataset)
                    started += time.perf_counter() - before  # no part of the training's rate
    if step < every.num_steps:
        raise signals.Terminated(f"stopped by SIGTERM at step {step}")
    return state


def _start(
    checkpoints: ocp.CheckpointManager, init_fn: Callable[[Batch], TrainState], batch: Batch
) -> TrainState:
    """Return the state of the latest checkpoint, or the first one where there is none."""
    state = checkpoint.resume(checkpoints, jax.eval_shape(init_fn, batch))
    if state is not None:
        return state
    # Drawing parameters once is no work; compiling it with every optimisation is.
    fast = {"xla_backend_optimization_level": 0}
    return jax.jit(init_fn, compiler_options=fast)(batch)


def _fetch(window: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the metrics of the last steps; one transfer for all of them."""
    values = jax.device_get(window)
    return {key: np.stack([one[key] for one in values]) for key in values[0]}


def _means(values: dict[str, np.ndarray]) -> dict[str, float]:
    return {key: float(np.mean(value)) for key, value in values.items()}


def _line(record: dict[str, Any], num_steps: int) -> str:
    rate = record["steps_per_second"]
    eta = (num_steps - record["step"]) / rate
    return (
        f"loss {record['loss']:.3f} bpd  {rate:.1f} steps/s  "
        f"ETA {int(eta // 60)}:{int(eta % 60):02d}"
    )


def _page(workdir: pathlib.Path, step: int) -> pathlib.Path:
    return workdir / "samples" / f"step_{step:06d}.png"
