"""What a network's Wiener filter has to know of the data, measured before the first step."""

from collections.abc import Iterator

import jax
import numpy as np

from vdm.model import Params
from vdm.networks import wiener
from vdm.run.data.dataset import Dataset, chunks
from vdm.run.errors import UserError
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

    They are those of the examples that are trained on, without augmentation.
    """
    network, encode = trainer.model.network, trainer.model.likelihood.encode
    if wiener.of(network) == "none":
        return first

    def batches() -> Iterator[np.ndarray]:
        for index in chunks(dataset.examples):
            yield np.asarray(encode(dataset.take(index).x))

    params = wiener.fitted(network, first.params, batches())
    # A copy for each: a donated buffer must not be donated twice.
    copies = (_placed(params, first.params) for _ in range(2))
    return first._replace(params=next(copies), ema=next(copies))


def _placed(params: Params, like: Params) -> Params:
    """Return copies of the parameters where those of another tree are."""
    return jax.tree.map(
        lambda value, old: jax.device_put(value, old.sharding, may_alias=False), params, like
    )
