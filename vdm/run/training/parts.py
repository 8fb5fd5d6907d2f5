"""The parts of a training run, checked together before anything is computed."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vdm.run import data, mesh as meshes
from vdm.run.config import Config, own
from vdm.run.config.words import SAMPLERS
from vdm.run.data import condition as conditions, side_file, validation
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import Dataset, Stored, chunks
from vdm.run.errors import UserError
from vdm.run.training import (
    build,
    checks,
    initial,
    number_law,
    own_parts,
    standardise,
    statistics,
)
from vdm.run.training.batches import make_batch
from vdm.run.training.step import Batch, Trainer


class Parts(NamedTuple):
    """The parts of a config's run; `example` is a batch of one example, for its shapes.

    The trainer's config is the given one with data.standardise and train.init_from carried out.
    """

    dataset: Dataset
    trainer: Trainer
    condition: Condition
    mesh: Mesh
    example: Batch


def prepare(
    config: Config, devices: Sequence[jax.Device] | None = None, names: Sequence[str] = ()
) -> Parts:
    """Return the parts of a run; raises UserError for every mistake that a config can have.

    `devices` are those of the mesh, all of every process by default; `names` are those of a
    vector's numbers, where the run has begun already. Of the user's own files also the test split
    is checked, which only an evaluation reads.
    """
    made = of(config, validation.load(config, "train"), devices, names)
    if config.data.name in data.FILES or own.is_own_set(config.data.name):
        network = made.trainer.model.network
        names = made.condition.vector_names
        test = side_file.joined(data.load(config.data, "test"), config.data.path, network, names)
        checks.check_data(made.trainer.model, made.dataset.shape, made.condition, test)
        if isinstance(test.examples, Stored) and config.data.name == "images":
            for index in chunks(test.examples):
                test.take(index)
    return made


def of(
    config: Config,
    dataset: Dataset,
    devices: Sequence[jax.Device] | None = None,
    names: Sequence[str] = (),
) -> Parts:
    """Return the parts of a run on this training set; raises UserError as `prepare` does."""
    if config.train.batch_size > len(dataset):
        raise UserError(
            f"train.batch_size is {config.train.batch_size}, but the train split of "
            f"{dataset.name} has {len(dataset)} examples"
        )
    config = standardise.resolved(initial.resolved(config), dataset)
    config = number_law.resolved(config, dataset)
    trainer = build.trainer(config)
    network = trainer.model.network
    names = names or _names_before(config, network)
    dataset = side_file.joined(dataset, config.data.path, network, names)
    condition = _fit(trainer, dataset)
    mesh = meshes.for_training(config, devices)
    example = make_batch(dataset, condition, config, 0, np.arange(1))
    return Parts(dataset, trainer, condition, mesh, example)


def _names_before(config: Config, network: object) -> tuple[str, ...]:
    """Return what the numbers of a vector are called in the run that this one begins with."""
    kept = initial.kept_condition(config, network)
    return () if kept is None else kept.vector_names


def _check(trainer: Trainer, condition: Condition, dataset: Dataset) -> None:
    """Raise UserError unless all parts fit together, and the user's own are what they must be."""
    config, vdm = trainer.config, trainer.model
    network, likelihood = config.model.network["name"], config.model.likelihood["name"]
    optimizer, text = config.optimizer.method["name"], config.sample.sampler
    if own.is_own(likelihood):
        own_parts.check_likelihood(likelihood, vdm.likelihood, dataset)
    if own.is_own(network):
        own_parts.check_network(network, vdm, condition, dataset.shape)
    checks.check_fit(vdm, condition, dataset)
    if not (own.is_own(optimizer) or own.is_own(own.split(text, SAMPLERS)[0])):
        return
    x, cond = dataset.take(np.arange(1)).x, condition.of_samples(np.arange(1))
    params = jax.eval_shape(vdm.init, jax.random.key(0), x, cond)
    own_parts.check_optimizer(optimizer, trainer.optimizer, params)
    own_parts.check_sampler(text, vdm, checks.sampler(text), condition, params, dataset.shape)


def fitted(config: Config, dataset: Dataset) -> tuple[Trainer, Condition]:
    """Return the trainer and the condition of a config, checked against a data set.

    Raises UserError where they do not fit.
    """
    trainer = build.trainer(config)
    return trainer, _fit(trainer, dataset)


def _fit(trainer: Trainer, dataset: Dataset) -> Condition:
    """Return the condition of a trainer's network, checked with all parts against a data set."""
    config = trainer.config
    network = trainer.model.network
    own = conditions.learned(network, dataset)
    if (kept := initial.kept_condition(config, network)) is not None:
        own = dataclasses.replace(own, vector=kept.vector, field=kept.field)
    law = trainer.model.number_law
    condition = conditions.build(network, dataset.shape, config.data.augment, own, law)
    if not config.train.init_from:
        statistics.check(trainer, dataset)
    _check(trainer, condition, dataset)
    return condition
