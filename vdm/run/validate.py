"""Validation while a run trains: the bound of its validation split, always with the same noise.

The noise of an example follows from the run's seed and its position, so two validations differ by
their parameters alone, and their difference has a much smaller error than either of them.
"""

import functools
import pathlib
from collections.abc import Callable

import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from vdm.model import Params
from vdm.run import keys
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import Dataset
from vdm.run.evaluation import bound, rows, units
from vdm.run.system import processes
from vdm.run.training.step import Trainer, TrainState
from vdm.run.workdir import checkpoint, validations

LEVELS = 2  # noise levels for each example: enough, since the noise is the same each time


class Watch:
    """The validations of a run that trains; `best` keeps its best checkpoint, if that is asked.

    `release` lays a state out as it is in files.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        trainer: Trainer,
        condition: Condition,
        dataset: Dataset,
        mesh: Mesh,
        step: int,
        best: ocp.CheckpointManager | None,
        release: Callable[[TrainState], TrainState],
    ):
        self._workdir, self._trainer, self._mesh = workdir, trainer, mesh
        self._dataset, self._condition, self._best = dataset, condition, best
        self._release = release
        model, law = trainer.model, trainer.objective.law
        precision = trainer.config.evaluate.precision
        self._fn = bound.compiled(model, law, mesh, num_levels=LEVELS, precision=precision)
        self._found = validations.read(workdir, len(dataset)).until(step)

    def due(self, step: int) -> bool:
        """Return whether a validation is due after a step."""
        train = self._trainer.config.train
        return step % train.validate_every == 0 or step == train.num_steps

    def measure(self, state: TrainState) -> dict[str, float]:
        """Return the validation of a state as metrics, and keep the state if it is the best one."""
        step = int(state.step)
        ema, raw = (self._bound(params, state) for params in (state.ema, state.params))
        self._found = self._found.and_then(step, ema, raw)
        write = functools.partial(validations.write, self._workdir, self._found)
        processes.first_alone(write)
        self._keep(state)
        return self._found.numbers()

    def catch_up(self, state: TrainState) -> None:
        """Do for a state that training resumes from what the session before has left undone.

        SIGTERM does not wait for a validation, and a kill not for the best checkpoint.
        """
        step = int(state.step)
        if step in self._found.steps:
            self._keep(state)
        elif step and self.due(step):
            self.measure(state)

    def _keep(self, state: TrainState) -> None:
        """Keep the state that was measured last, if it is better than the one that is kept."""
        step, found = int(state.step), self._found
        if self._best is None:
            return
        kept = max(self._best.all_steps(), default=None)
        # A run that is resumed from an earlier step comes by its own best state again.
        if kept is not None and kept >= step:
            return
        # Not the best of all: that one may have been lost, or not have been asked for yet.
        before = found.ema[found.steps == kept].mean(1)
        if not len(before) or found.ema[-1].mean() < before[0]:
            checkpoint.save(self._best, self._release(state))

    def over(self) -> str | None:
        """Return in words why training has to stop, None where it has not."""
        patience, found = self._trainer.config.train.patience, self._found
        if not patience or found.since_best < patience:
            return None
        best = found.best
        return (
            f"stopped at step {found.steps[-1]}: no gain in the last {found.since_best} "
            f"validations; the best had {found.ema[best].mean():.4f} bits per dimension, at step "
            f"{found.steps[best]}"
        )

    def back_to(self, step: int) -> None:
        """Forget what came after a step, from which training resumes with other noise."""
        self._found = self._found.until(step)
        if self._best is not None:
            checkpoint.drop_after(self._best, step)

    def _bound(self, params: Params, state: TrainState) -> np.ndarray:
        """Return the bits per dimension of every example, [n]."""
        config = self._trainer.config
        found = rows.of_examples(
            self._fn,
            (params, state.law_state, None, keys.data(config.seed)),
            self._mesh,
            self._dataset,
            self._condition,
            per_example=LEVELS,
            batch_size=config.evaluate.batch_size,
            what=None,
            show=lambda done: "",
            problem=f"the validation bound is not finite at step {int(state.step)}",
        )
        return units.in_bits(found[..., :3].sum(-1).mean(1), self._dataset.dims)
