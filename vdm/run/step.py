"""One training step: a pure function from a state and a batch to the next state and metrics."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vdm.losses import bits_per_dim
from vdm.model import VDM
from vdm.run import optim
from vdm.run.config import Config


class TrainState(NamedTuple):
    """All that a run needs to go on; batches and noise follow from the seed and the step."""

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any


class Batch(NamedTuple):
    """Examples and, for a conditional model, their condition."""

    x: jax.Array | np.ndarray
    cond: jax.Array | np.ndarray | None


def init_key(seed: int) -> jax.Array:
    """Return the key that parameters are drawn with."""
    return jax.random.split(jax.random.key(seed))[0]


def training_key(seed: int) -> jax.Array:
    """Return the key whose fold with the step gives the step's noise."""
    return jax.random.split(jax.random.key(seed))[1]


def init_state(
    model: VDM, optimizer: optax.GradientTransformation, seed: int, batch: Batch
) -> TrainState:
    """Return the state before the first step."""
    params = model.init(init_key(seed), batch.x, batch.cond)
    # A copy: a donated buffer must not be donated twice.
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: VDM,
    optimizer: optax.GradientTransformation,
    config: Config,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Return the next state and scalar metrics in bits per dimension.

    The loss is the mean negative bound at T = ∞, one noise level per example.
    """
    key = jax.random.fold_in(training_key(config.seed), state.step)
    key_vlb, key_dropout = jax.random.split(key)

    def loss_fn(params):
        terms = model.vlb(params, key_vlb, batch.x, batch.cond, dropout_key=key_dropout)
        chex.assert_shape(tuple(terms), (config.train.batch_size,))
        chex.assert_type(tuple(terms), float)
        to_bpd = lambda nats: bits_per_dim(jnp.mean(nats), batch.x[0].size)  # noqa: E731
        return to_bpd(terms.total), jax.tree.map(to_bpd, terms)

    (loss, terms), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = optim.ema_decay(config.optimizer, state.step)
    ema = optax.incremental_update(params, state.ema, 1.0 - decay)
    log_snr_fn = model.log_snr(params)
    metrics = {
        "loss": loss,
        **terms._asdict(),
        "gradient_norm": optax.tree.norm(gradient),
        "log_snr_max": log_snr_fn(jnp.zeros(())),
        "log_snr_min": log_snr_fn(jnp.ones(())),
    }
    return TrainState(state.step + 1, params, ema, opt_state), metrics
