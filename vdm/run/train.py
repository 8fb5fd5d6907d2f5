"""The training loop: flat, resumable, and silent about nothing."""

import functools
import json
import pathlib
import time
from typing import Any

import chex
import jax
import numpy as np

from vdm.run import build, checkpoint, condition, config as configs, data
from vdm.run.batches import batches, make_batch
from vdm.run.config import Config
from vdm.run.errors import UserError
from vdm.run.files import replacing
from vdm.run.progress import bar
from vdm.run.step import TrainState, init_state, train_step

METRICS_FILE = "metrics.jsonl"


def train(config: Config, workdir: pathlib.Path) -> TrainState:
    """Train to config.train.num_steps, from the latest checkpoint if there is one.

    Writes the config, checkpoints and metrics (JSON lines, in bits per dimension) into
    the workdir. Raises UserError for a config that does not fit, and for a loss that is
    not finite: then the last good checkpoint stays the latest.
    """
    dataset = data.load(config.data, "train")
    if config.train.batch_size > len(dataset):
        raise UserError(
            f"train.batch_size is {config.train.batch_size}, but the train split of "
            f"{dataset.name} has {len(dataset)} examples"
        )
    trainer = build.trainer(config, dataset)
    told = condition.build(trainer.model.network, dataset, config.data.augment)
    configs.keep(config, workdir)

    step_fn = jax.jit(functools.partial(train_step, trainer=trainer), donate_argnums=0)
    init_fn = functools.partial(init_state, trainer)
    with checkpoint.manager(workdir, kept=config.train.checkpoints_kept) as checkpoints:
        batch = make_batch(dataset, told, config, 0)
        if checkpoints.latest_step() is None:
            # Drawing parameters once is no work; compiling it with every optimisation is.
            fast = {"xla_backend_optimization_level": 0}
            state = jax.jit(init_fn, compiler_options=fast)(batch)
        else:
            state = checkpoint.restore(checkpoints, jax.eval_shape(init_fn, batch))
        first = int(state.step)
        upcoming = batches(dataset, told, config, first)
        _cut_metrics(workdir / METRICS_FILE, first)
        window: list[dict[str, Any]] = []
        started = time.perf_counter()
        with bar("train", config.train.num_steps, first) as advance:
            for step in range(first, config.train.num_steps):
                state, metrics = step_fn(state, next(upcoming))
                window.append(metrics)
                last = step + 1 == config.train.num_steps
                save = last or (step + 1) % config.train.checkpoint_every == 0
                if save or (step + 1) % config.train.log_every == 0:
                    record = _summary(window, step + 1)
                    record["steps_per_second"] = len(window) / (time.perf_counter() - started)
                    with (workdir / METRICS_FILE).open("a") as file:
                        file.write(json.dumps(record) + "\n")
                    advance(step + 1, _line(record, config.train.num_steps))
                    window, started = [], time.perf_counter()
                if save:
                    _check_finite(state.params, step + 1)
                    checkpoint.save(checkpoints, state)
    return state


def _summary(window: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """Average the metrics of the last steps; one transfer, one look for NaN."""
    metrics = jax.device_get(window)
    values = {key: np.stack([m[key] for m in metrics]) for key in metrics[0]}
    for key in ("loss", "gradient_norm"):
        bad = ~np.isfinite(values[key])
        if bad.any():
            at = step - len(window) + 1 + int(np.argmax(bad))
            raise UserError(
                f"{key} is {values[key][bad][0]} at step {at}: stopped; checkpoints before it are "
                "kept. Try a lower optimizer.learning_rate in a new workdir, or look at the data"
            )
    return {"step": step, **{key: float(np.mean(value)) for key, value in values.items()}}


def _check_finite(params: Any, step: int) -> None:
    # A finite loss can still lead to an update that is not.
    try:
        chex.assert_tree_all_finite(params)
    except AssertionError as error:
        raise UserError(
            f"parameters are not finite after step {step}: stopped; checkpoints before it are kept"
        ) from error


def _line(record: dict[str, Any], num_steps: int) -> str:
    rate = record["steps_per_second"]
    eta = (num_steps - record["step"]) / rate
    return (
        f"loss {record['loss']:.3f} bpd  {rate:.1f} steps/s  "
        f"ETA {int(eta // 60)}:{int(eta % 60):02d}"
    )


def _cut_metrics(path: pathlib.Path, step: int) -> None:
    """Drop the lines that a run stopped after its last checkpoint has left behind."""
    if not path.exists():
        return
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step(line, path) <= step]
    if kept != lines:
        with replacing(path) as temporary:
            temporary.write_text("".join(kept))


def _step(line: str, path: pathlib.Path) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: cannot read the line {line.strip()[:60]!r}") from error
