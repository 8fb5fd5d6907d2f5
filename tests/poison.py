"""A training step whose loss is not finite."""

import jax
import jax.numpy as jnp

from vdm.run.training import program
from vdm.run.training.step import train_step


def poison(monkeypatch, at, rollbacks):
    """Make the loss of a step NaN for as long as there were fewer roll-backs than these."""

    def poisoned(state, batch, *, trainer, division):
        bad = (state.step + 1 == at) & (state.rollbacks < rollbacks)
        state, metrics = train_step(state, batch, trainer=trainer, division=division)
        spoilt = jnp.where(bad, jnp.nan, 1.0)
        params = jax.tree.map(lambda leaf: leaf * spoilt, state.params)
        return state._replace(params=params), {**metrics, "loss": metrics["loss"] * spoilt}

    monkeypatch.setattr(program, "train_step", poisoned)
