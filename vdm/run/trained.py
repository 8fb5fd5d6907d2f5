"""A trained run, read back from its workdir: what evaluation and sampling start from."""

import pathlib
from typing import Any, NamedTuple

import jax

from vdm.model import VDM
from vdm.run import build, checkpoint, config as configs, data
from vdm.run.config import Config
from vdm.run.step import Batch, init_state


class Trained(NamedTuple):
    """A model with its averaged parameters (EMA), the step they are from, and its config."""

    config: Config
    model: VDM
    params: Any
    step: int


def load(workdir: pathlib.Path) -> Trained:
    """Return the run of a workdir at its latest checkpoint; raises UserError if there is none."""
    config = configs.load(workdir)
    dataset = data.load(config.data.name, "train")
    trainer = build.trainer(config, dataset)
    model = trainer.model
    cond = build.condition(model.network, dataset)
    example = Batch(dataset.x[:1], None if cond is None else cond[:1])
    template = jax.eval_shape(lambda: init_state(trainer, example))
    state = checkpoint.load(workdir, template)
    return Trained(config, model, state.ema, int(state.step))
