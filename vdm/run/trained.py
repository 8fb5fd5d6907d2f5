"""A trained run, read back from its workdir: what evaluation and sampling start from."""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vdm.choices import unknown
from vdm.laws import Law, ScheduleLaw
from vdm.model import VDM
from vdm.run import config as configs, data, mesh as meshes
from vdm.run.config import Config, DevicesConfig
from vdm.run.config.words import PARAMS as PARAMS
from vdm.run.data import condition
from vdm.run.errors import UserError
from vdm.run.training import build, program as programs
from vdm.run.training.step import Batch, Trainer
from vdm.run.workdir import checkpoint


class Trained(NamedTuple):
    """A model with its parameters, averaged ("ema") or not ("raw"), and what they are from."""

    config: Config
    model: VDM
    mesh: Mesh
    params: Any
    step: int
    kind: str = "ema"
    law: Law = ScheduleLaw()  # of λ in training, with the state it ended with
    levels: Any = ()


def load(workdir: pathlib.Path, params: str = "ema") -> Trained:
    """Return the run of a workdir at its latest checkpoint, on all devices there are.

    `params` is "ema" for the averaged parameters or "raw" for the last ones. Raises UserError
    if there is no run, or for another word.
    """
    if params not in PARAMS:
        raise UserError(unknown("params", params, PARAMS))
    config = configs.load(workdir)
    dataset = data.load(config.data, "train")
    trainer = build.trainer(config, dataset)
    told = condition.build(trainer.model.network, dataset, config.data.augment)
    one = np.arange(1)
    example = Batch(dataset.take(one).x, told.of_samples(one))
    return _restore(workdir, trainer, example, meshes.for_results(config), params)


def load_without_data(workdir: pathlib.Path) -> Trained:
    """Return the averaged run of a workdir on one device; its data set need not be at hand.

    Raises UserError if there is no run.
    """
    config = configs.load(workdir)
    trainer = build.without_data(config)
    integers = trainer.model.likelihood.bounds is not None
    x = np.zeros((1, *data.kept_shape(workdir)), np.uint8 if integers else np.float32)
    network: Any = trainer.model.network
    cond = None if network.num_classes is None else np.zeros(1, np.int32)
    mesh = meshes.make(DevicesConfig(), jax.devices()[:1])
    return _restore(workdir, trainer, Batch(x, cond), mesh, "ema")


def _restore(
    workdir: pathlib.Path, trainer: Trainer, example: Batch, mesh: Mesh, params: str
) -> Trained:
    state = checkpoint.load(workdir, programs.template(trainer, mesh, example))
    return Trained(
        config=trainer.config,
        model=trainer.model,
        mesh=mesh,
        params=state.ema if params == "ema" else state.params,
        step=int(state.step),
        kind=params,
        law=trainer.objective.law,
        levels=state.levels,
    )
