"""How a tiny difference between two trainings grows: why some runs part on other devices.

Two trainings begin with parameters that differ by a ten-millionth, about what rounding to float32
does in a step, and have the same data and noise. They are in float64, whose own rounding plays no
part. The table has the relative difference of the network's parameters.
"""

import argparse
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from vdm.model import Params
from vdm.run import data
from vdm.run.config import Config, from_dict
from vdm.run.training import parts
from vdm.run.training.batches import make_batch
from vdm.run.training.step import init_state, train_step

SHOWN = (10, 50, 100, 150, 200)
# Name of the row: schedule, and the learning rate of its interior.
ROWS = {
    "linear": ("linear", 0.02),
    "learned_linear": ("learned_linear", 0.02),
    "learned_monotone": ("learned_monotone", 0.02),
    "learned_monotone, shape_learning_rate=0.005": ("learned_monotone", 0.005),
    "learned_monotone, shape_learning_rate=1e-9": ("learned_monotone", 1e-9),
}


def config(schedule: str, rate: float) -> Config:
    """Return a run on points in the plane with a tiny network without dropout."""
    return from_dict(
        {
            "data": {"name": "mixture"},
            "model": {
                "schedule": {"name": schedule, "log_snr_max": 8.0, "log_snr_min": -6.0},
                "network": {"name": "mlp", "width": 16, "num_blocks": 1, "dropout": 0.0},
                "likelihood": {"name": "gaussian", "scale": 0.02},
            },
            "train": {"num_steps": max(SHOWN), "batch_size": 64},
            "optimizer": {
                "learning_rate": 2e-3,
                "warmup_steps": 2,
                "shape_learning_rate": rate,
            },
        }
    )


def trained(config: Config, change: float) -> Iterator[Params]:
    """Yield the network's parameters after the steps that are shown."""
    dataset = data.load(config.data, "train")
    _, trainer, condition, _, example = parts.of(config, dataset)
    step = jax.jit(functools.partial(train_step, trainer=trainer))
    state = jax.jit(functools.partial(init_state, trainer))(example)
    state = state._replace(params=jax.tree.map(lambda leaf: leaf * (1 + change), state.params))
    for number in range(max(SHOWN)):
        state, _ = step(state, make_batch(dataset, condition, config, number))
        if number + 1 in SHOWN:
            yield state.params["network"]


def distance(ours: Params, theirs: Params) -> float:
    """Return the norm of the difference relative to the norm."""
    ours, theirs = (jnp.concatenate([*map(jnp.ravel, jax.tree.leaves(p))]) for p in (ours, theirs))
    return float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(ours))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--change", type=float, default=1e-7, help="relative, of every parameter")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    table = Table("training", *(f"after {number} steps" for number in SHOWN))
    for name, (schedule, rate) in ROWS.items():
        run = config(schedule, rate)
        pairs = zip(trained(run, 0.0), trained(run, options.change), strict=True)
        table.add_row(name, *(f"{distance(*pair):.1e}" for pair in pairs))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
