"""What a network's Wiener filter has to know of the data, measured before the first step."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from vdm.model import Params
from vdm.networks import wiener
from vdm.run.data.dataset import Dataset, chunks
from vdm.run.errors import UserError
from vdm.run.system import processes
from vdm.run.training.step import Trainer, TrainState


def check(trainer: Trainer, dataset: Dataset) -> None:
    """Raise UserError where a network's filter cannot be measured from a training split."""
    kind = wiener.of(trainer.model.network)
    if kind == "none":
        return
    try:
        wiener.check_number(len(dataset), dataset.num_dims, kind)
    except ValueError as error:
        raise UserError(f"model.network.{error}") from error


def measured(first: TrainState, trainer: Trainer, dataset: Dataset) -> TrainState:
    """Return the first state of a run with its filter's statistics, where the network has one.

    They are those of the examples that are trained on, without augmentation. The first process
    measures them for all: eigenvectors have no sign of their own, and two machines may find
    different ones.
    """
    network, encode = trainer.model.network, trainer.model.likelihood.encode
    if wiener.of(network) == "none":
        return first

    def batches() -> Iterator[np.ndarray]:
        for index in chunks(dataset.examples):
            yield np.asarray(encode(jnp.asarray(dataset.take(index).x)))

    own = first.params["network"][wiener.NAME]
    found = processes.first_alone(lambda: wiener.measured_for(network, batches())._asdict())
    blank = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in own.items()}
    values = blank if found is None else {n: found[n].astype(own[n].dtype) for n in own}
    if jax.process_count() > 1:
        values = multihost_utils.broadcast_one_to_all(values)

    def placed(params: Params) -> Params:
        # Copies: a step donates its buffers, which no other state and no other device may share.
        there = {n: jnp.copy(jax.device_put(values[n], own[n].sharding)) for n in own}
        return {**params, "network": {**params["network"], wiener.NAME: there}}

    return first._replace(params=placed(first.params), ema=placed(first.ema))
