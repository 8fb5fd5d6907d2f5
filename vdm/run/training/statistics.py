"""What a network's Wiener filter has to know of the data, measured before the first step."""

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

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
    if not isinstance(network, nn.Module) or wiener.of(network) == "none":
        return first

    def batches() -> Iterator[np.ndarray]:
        for index in chunks(dataset.examples):
            yield np.asarray(encode(jnp.asarray(dataset.take(index).x)))

    found = wiener.fitted(network, first.params, batches())
    if jax.process_count() > 1:
        # Eigenvectors have no sign of their own: two machines may find different ones.
        found = multihost_utils.broadcast_one_to_all(found)
    placed = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), found, first.params)
    # Copies: buffers are donated, which neither these two nor two devices may have in common.
    params, ema = (jax.tree.map(jnp.copy, placed) for _ in range(2))
    return first._replace(params=params, ema=ema)
