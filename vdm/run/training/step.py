"""One training step: a pure function from a state and a batch to the next state and metrics."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vdm.condition import Condition, drop_condition
from vdm.laws import LawState
from vdm.losses import bits_per_dim
from vdm.model import VDM, VLB, Params
from vdm.networks import precision, wiener
from vdm.networks.dropout import Dropout
from vdm.noise_levels import NoiseLevels
from vdm.run.config import Config
from vdm.run.training import optim
from vdm.run.training.division import Division, divided, loops, on_every_device
from vdm.run.training.objective import Objective
from vdm.sets import dims_of
from vdm.variance import two_gradients

# Times for a bound with finite T, else noise levels with their density.
Levels = jax.Array | NoiseLevels


class TrainState(NamedTuple):
    """All that a run needs to resume.

    Batches follow from the seed and the step, noise from these and the number of roll-backs:
    there is no other random state and no position in the data.
    """

    step: jax.Array
    params: Params
    ema: Params
    opt_state: optax.OptState
    law_state: LawState
    rollbacks: jax.Array  # how often the run was rolled back after a loss that was not finite


class Batch(NamedTuple):
    """Examples and, for a conditional model, their condition."""

    x: jax.Array | np.ndarray
    cond: Condition | None


def init_key(seed: int) -> jax.Array:
    """Return the key that parameters are drawn with."""
    return jax.random.split(jax.random.key(seed))[0]


def training_key(seed: int) -> jax.Array:
    """Return the key whose fold with the step and the roll-backs gives the step's noise."""
    return jax.random.split(jax.random.key(seed))[1]


class Trainer(NamedTuple):
    """The parts of a training step; none of them changes during a run."""

    model: VDM
    optimizer: optax.GradientTransformation
    objective: Objective
    config: Config


class Noise(NamedTuple):
    """A step's randomness, drawn once for the whole batch over all devices and micro-batches."""

    positions: jax.Array  # [b], uniform in [0, 1) and even together, for the law of λ
    keys: jax.Array  # [b], one for each example's ε
    dropout: jax.Array  # one for all


def init_state(trainer: Trainer, batch: Batch) -> TrainState:
    """Return the state before the first step."""
    params = trainer.model.init(init_key(trainer.config.seed), batch.x, batch.cond)
    # A copy: a donated buffer must not be donated twice.
    ema = jax.tree.map(jnp.copy, params)
    step, rollbacks = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    law_state = trainer.objective.law.init()
    return TrainState(step, params, ema, trainer.optimizer.init(params), law_state, rollbacks)


def train_step(
    state: TrainState, batch: Batch, *, trainer: Trainer, division: Division | None = None
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Return the next state and scalar metrics in bits per dimension.

    `division` says how the step is divided over devices; without it, it is computed as a whole.

    The network and the end points of the schedule descend the loss: the mean negative
    bound, or with a weighting the weighted diffusion term. A number network descends −log p(n|c)
    with either. `loss` among the metrics is always the bound.
    """
    model, objective, config = trainer.model, trainer.objective, trainer.config
    key = jax.random.fold_in(training_key(config.seed), state.step)
    key = jax.random.fold_in(key, state.rollbacks)  # after a roll-back other noise
    key_positions, key_noise, key_dropout = jax.random.split(key, 3)
    noise = Noise(
        objective.positions(key_positions, config.train.batch_size),
        jax.random.split(key_noise, config.train.batch_size),
        key_dropout,
    )
    if config.train.cond_dropout and batch.cond is not None:
        key_cond = jax.random.split(key, 4)[3]
        cond = drop_condition(key_cond, batch.cond, config.train.cond_dropout)
        batch = batch._replace(cond=cond)
    loss, terms, gradient, law_state = gradients(trainer, state, batch, noise, division)
    updates, opt_state = trainer.optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, wiener.held(model.network, updates))
    decay = optim.ema_decay(config.optimizer, state.step)
    ema = optax.incremental_update(params, state.ema, 1.0 - decay)
    log_snr_fn = model.log_snr(params)
    metrics = {
        "loss": terms.total,
        **terms._asdict(),
        "gradient_norm": optax.tree.norm(gradient),
        "log_snr_max": log_snr_fn(jnp.zeros(())),
        "log_snr_min": log_snr_fn(jnp.ones(())),
    }
    if objective.weighting is not None:
        metrics["objective"] = loss
    state = TrainState(state.step + 1, params, ema, opt_state, law_state, state.rollbacks)
    return state, metrics


def gradients(
    trainer: Trainer,
    state: TrainState,
    batch: Batch,
    noise: Noise,
    division: Division | None = None,
) -> tuple[jax.Array, VLB, Params, LawState]:
    """Return loss, mean terms (bits per dimension), two kinds of gradient, and the law state.

    The losses L_i of `two_gradients` are the diffusion terms, weighted where the objective is.
    """
    model, objective, size = trainer.model, trainer.objective, trainer.config.train.batch_size
    chex.assert_equal_shape_prefix((batch.x, noise.positions, noise.keys), 1)

    def levels_fn(schedule_params: Params) -> Levels:
        if objective.num_steps is not None:
            return noise.positions  # times, as they are
        log_snr_fn = functools.partial(model.schedule.log_snr, schedule_params)
        return objective.levels(state.law_state, log_snr_fn, noise.positions)

    def loss_fn(
        params: Params,
        where: Levels,
        examples: Batch,
        keys: jax.Array,
        rows: jax.Array,
    ) -> tuple[jax.Array, tuple[VLB, jax.Array]]:
        held, zero = model.number_apart(params, examples.cond)
        terms = model.vlb(
            held,
            keys,
            examples.x,
            examples.cond,
            noise_levels=where,
            num_steps=objective.num_steps,
            dropout_key=Dropout(noise.dropout, rows),
        )
        chex.assert_type(tuple(terms), float)
        to_bpd = functools.partial(bits_per_dim, num_dims=dims_of(examples.x, examples.cond))
        terms = jax.tree.map(to_bpd, terms)
        if objective.weighting is None:
            return jnp.mean(terms.total) + zero, (terms, terms.diffusion)
        assert isinstance(where, NoiseLevels)  # a weighting goes with T = ∞
        weighted = objective.weighting(where.log_snr) * terms.diffusion
        return jnp.mean(weighted) + zero, (terms, weighted)

    def cast(params: Params) -> Params:
        return {**params, "network": precision.cast(model.network, params["network"])}

    of_examples = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
    of_batch = functools.partial(
        _accumulate,
        of_examples,
        parts=trainer.config.train.accumulation_steps,
        unroll=not loops(division),
    )
    whole = divided(of_batch, division, cast)

    def value_and_grad(params: Params, levels: Levels) -> tuple[Any, Any]:
        # Numbers per example are few: every device has those of all, and needs no other for them.
        everywhere = functools.partial(on_every_device, division=division)
        levels = everywhere(levels)
        (loss, aux), (gradient, by_level) = whole(
            params, levels, batch, noise.keys, jnp.arange(size)
        )
        return (loss, everywhere(aux)), (gradient, everywhere(by_level))

    (loss, terms), gradient, levels = two_gradients(value_and_grad, levels_fn, state.params)
    chex.assert_shape(tuple(terms), (size,))
    diffusion = terms.diffusion / bits_per_dim(
        jnp.ones_like(terms.diffusion), dims_of(batch.x, batch.cond)
    )
    log_snr_fn = model.log_snr(state.params)
    law_state = objective.law.update(state.law_state, log_snr_fn, levels, diffusion)
    return loss, jax.tree.map(jnp.mean, terms), gradient, law_state


def _accumulate(
    value_and_grad: Callable[..., tuple[Any, Any]],
    params: Params,
    *per_example: Any,
    parts: int,
    unroll: bool,
) -> tuple[Any, Any]:
    """Return value_and_grad(params, *per_example), by `parts` micro-batches one after the other.

    Gradients by parameters are averaged in float32 at least, values per example are concatenated.
    """
    if parts == 1:
        return value_and_grad(params, *per_example)

    def cut(leaf: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        return leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:])

    def join(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(-1, *leaf.shape[2:])

    def one(total: Any, part: Any) -> tuple[Any, Any]:
        (loss, aux), (gradient, by_example) = value_and_grad(params, *part)
        return jax.tree.map(_add, total, (loss, gradient)), (aux, by_example)

    wide = jax.tree.map(
        lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params
    )
    total = jnp.zeros(()), wide
    (loss, gradient), rest = jax.lax.scan(one, total, jax.tree.map(cut, per_example), unroll=unroll)
    loss, gradient = jax.tree.map(lambda leaf: leaf / parts, (loss, gradient))
    aux, by_example = jax.tree.map(join, rest)
    # An example's share is of the mean over the batch, not over its micro-batch.
    by_example = jax.tree.map(lambda leaf: leaf / parts, by_example)
    return (loss, aux), (gradient, by_example)


def _add(total: jax.Array, part: jax.Array) -> jax.Array:
    return total + part.astype(total.dtype)
