"""A trained run, read back from its workdir: what evaluation and sampling start from."""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from vdm.choices import unknown
from vdm.model import VDM
from vdm.run import build, checkpoint, condition, config as configs, data
from vdm.run.config import Config
from vdm.run.errors import UserError
from vdm.run.laws import Law, ScheduleLaw
from vdm.run.step import Batch, init_state

PARAMS = ("ema", "raw")


class Trained(NamedTuple):
    """A model with its parameters, averaged ("ema") or not ("raw"), and what they are from."""

    config: Config
    model: VDM
    params: Any
    step: int
    kind: str = "ema"
    law: Law = ScheduleLaw()  # of λ in training, with the state it ended with
    levels: Any = ()


def load(workdir: pathlib.Path, params: str = "ema") -> Trained:
    """Return the run of a workdir at its latest checkpoint.

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
    template = jax.eval_shape(lambda: init_state(trainer, example))
    state = checkpoint.load(workdir, template)
    return Trained(
        config=config,
        model=trainer.model,
        params=state.ema if params == "ema" else state.params,
        step=int(state.step),
        kind=params,
        law=trainer.objective.law,
        levels=state.levels,
    )
