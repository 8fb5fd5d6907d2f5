"""A trained run, read back from its workdir: the start of evaluation, sampling and coding.

Nothing here needs the data set: the shape of an example is kept in the workdir, and its condition
follows from the config.
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vdm.choices import unknown
from vdm.laws import Law, LawState, ScheduleLaw
from vdm.model import VDM, Params
from vdm.run import config as configs, data, mesh as meshes
from vdm.run.config import Config
from vdm.run.config.words import PARAMS as PARAMS
from vdm.run.data import condition as conditions
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError
from vdm.run.training import build, checks, program as programs
from vdm.run.training.step import Batch
from vdm.run.workdir import checkpoint


class Trained(NamedTuple):
    """A model with its parameters, averaged ("ema") or not ("raw"), and the run they come from."""

    config: Config
    model: VDM
    mesh: Mesh
    params: Params
    step: int
    shape: tuple[int, ...]  # of one example
    condition: Condition
    kind: str = "ema"
    law: Law = ScheduleLaw()  # of λ in training; its last state is law_state
    law_state: LawState = ()


def load(
    workdir: str | pathlib.Path,
    params: str = "ema",
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Trained:
    """Return the run of a workdir at its latest checkpoint; the data set need not be available.

    `params` is "ema" for the averaged parameters or "raw" for the last ones; `devices` are all
    available devices by default. Raises UserError if there is no run, or for another value of
    params.
    """
    if params not in PARAMS:
        raise UserError(unknown("params", params, PARAMS))
    workdir = pathlib.Path(workdir)
    config = data.located(configs.load(workdir), workdir)
    trainer = build.trainer(config)
    shape = data.kept_shape(workdir)
    condition = conditions.build(trainer.model.network.num_classes, shape, config.data.augment)
    mesh = meshes.for_results(config, devices)
    example = Batch(build.blank(trainer.model, shape), condition.of_samples(np.arange(1)))
    state = checkpoint.load(workdir, programs.template(trainer, mesh, example))
    return Trained(
        config=config,
        model=trainer.model,
        mesh=mesh,
        params=state.ema if params == "ema" else state.params,
        step=int(state.step),
        shape=shape,
        condition=condition,
        kind=params,
        law=trainer.objective.law,
        law_state=state.law_state,
    )


def dataset(run: Trained, split: str) -> Dataset:
    """Return a split of the run's data set, whose examples are of the kind that it models.

    Raises UserError where the data set is not at hand, or holds examples of another kind by now.
    """
    found = data.load(run.config.data, split)
    checks.check_data(run.model, run.shape, run.condition, found)
    return found


def one_device() -> Sequence[jax.Device]:
    """Return this process's first device: a codec's numbers must come from one executable."""
    return jax.local_devices()[:1]
