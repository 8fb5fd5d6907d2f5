"""What the comparisons of short runs share: the demo's config, changes to it, and table cells."""

import functools
import math
import operator

import ml_collections
import numpy as np

from vdm.run import cli, config as configs

# experiments/digits.py in the size of `make demo`.
DEMO = (
    "--config=experiments/digits.py",
    "--config.train.batch_size=16",
    "--config.train.log_every=250",
    "--config.model.network.num_blocks=1",
    "--config.model.network.attention=none",
    "--config.model.network.dropout=0.0",
)


def ema_decay(steps):
    """Return the decay of an average that forgets half in a tenth of so many steps."""
    return 0.5 ** (10 / steps)


def read_config(flags, *, steps, seed):
    """Return the config of a run in which the average of parameters has a tenth for half-life."""
    return cli.read_config(
        [
            *flags,
            f"--config.train.num_steps={steps}",
            f"--config.optimizer.ema_decay={ema_decay(steps)}",
            f"--config.seed={seed}",
        ]
    )


def changed(config, changes):
    """Return the config with values replaced by their dotted keys, checked again."""
    values = ml_collections.ConfigDict(configs.to_dict(config))
    for key, value in changes.items():
        *blocks, name = key.split(".")
        functools.reduce(operator.getitem, blocks, values)[name] = value
    return configs.from_dict(values.to_dict())


def cell(values):
    """Return mean ± standard error over seeds, or what a single one has."""
    values = np.asarray(values, np.float64)
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{values.mean():.3f} ± {values.std(ddof=1) / math.sqrt(len(values)):.3f}"


def seeds(text):
    """Return the seeds in a comma-separated text."""
    return [int(word) for word in text.split(",")]
