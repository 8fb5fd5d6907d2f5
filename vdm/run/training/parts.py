"""All that a training run is made of, found to fit together before anything is computed."""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from vdm.run import data, mesh as meshes
from vdm.run.config import Config
from vdm.run.data import condition
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError
from vdm.run.training import build, checks
from vdm.run.training.batches import make_batch
from vdm.run.training.step import Batch, Trainer


class Parts(NamedTuple):
    """What a config asks for; `example` is a batch of one example, for its shapes."""

    dataset: Dataset
    trainer: Trainer
    told: Condition
    mesh: Mesh
    example: Batch


def prepare(config: Config) -> Parts:
    """Return the parts of a run; raises UserError for every mistake that a config can have."""
    return of(config, data.load(config.data, "train"))


def of(config: Config, dataset: Dataset) -> Parts:
    """Return the parts of a run on this training set; raises UserError as `prepare` does."""
    if config.train.batch_size > len(dataset):
        raise UserError(
            f"train.batch_size is {config.train.batch_size}, but the train split of "
            f"{dataset.name} has {len(dataset)} examples"
        )
    trainer = build.trainer(config, dataset)
    checks.check_dropped(trainer.model.network, config)
    told = condition.build(trainer.model.network, dataset, config.data.augment)
    mesh = meshes.for_training(config)
    return Parts(dataset, trainer, told, mesh, make_batch(dataset, told, config, 0, np.arange(1)))
