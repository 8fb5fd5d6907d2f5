"""A training step in float64: a network that sees λ and drops units, and all that it needs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from oracles import arrays
from vdm import VDM, schedules
from vdm.likelihoods import gaussian
from vdm.run import config as configs
from vdm.run.training import objective as objectives, optim
from vdm.run.training.step import Batch, Trainer, init_state

ENDS = (6.0, -5.0)

SIZE = 6
# Names that a config has to say; the model is built here.
MODEL = {
    "schedule": {"name": "linear"},
    "network": {"name": "mlp"},
    "likelihood": {"name": "gaussian"},
}


class Denoiser(nn.Module):
    """A network that sees λ and drops units, in float64."""

    dropout: float = 0.3

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train):
        inputs = jnp.concatenate([z, jnp.sin(log_snr)[:, None], 0.1 * log_snr[:, None]], 1)
        hidden = jnp.tanh(nn.Dense(12, param_dtype=float)(inputs))
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        return nn.Dense(z.shape[1], param_dtype=float)(hidden)


INTERIOR = schedules.learned_monotone(*ENDS, width=5, learn_ends=False)
MONOTONE = schedules.learned_monotone(*ENDS, width=5)
LINEAR = schedules.linear(*ENDS)


def trainer_of(schedule, parts=1, size=SIZE, dropout=0.3, **objective):
    """What training steps with the network above are made of."""
    model = VDM(schedule, Denoiser(dropout), gaussian(0.1), "v")
    config = configs.from_dict(
        {
            "data": {"name": "mixture"},
            "model": MODEL,
            "train": {"num_steps": 1, "batch_size": size, "accumulation_steps": parts},
            "objective": objective,
            "optimizer": {"warmup_steps": 0},
        }
    )
    objective = objectives.build(config.objective, model)
    return Trainer(model, optim.build(config.optimizer, 1), objective, config)


def build(schedule, parts=1, **arguments):
    """A trainer, a state whose parameters have moved, and a batch."""
    trainer = trainer_of(schedule, parts, **arguments)
    batch = Batch(arrays(1, (SIZE, 2)), None)
    state = jax.jit(functools.partial(init_state, trainer))(batch)
    moved = np.random.default_rng(2)
    params = jax.tree.map(lambda p: p + 0.2 * moved.normal(size=p.shape), state.params)
    return trainer, state._replace(params=params), batch
