"""Real data put on the scale of the process, by the mean and std of the Gaussian likelihood.

It takes them off before the process, gives them back to samples, and counts −Σ log std in the
density: bits stay those of the user's own numbers.
"""

import dataclasses

import numpy as np

from vdm.run.config import Config
from vdm.run.data import moments
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError


def resolved(config: Config, data: Dataset) -> Config:
    """Return the config with data.standardise carried out: mean and std of model.likelihood.

    They are those of the examples that are trained on, in float64; what is constant keeps its unit
    (std = 1). A config that has them already is returned as it is. Raises UserError for data that
    are not real numbers, and for a config with another mean or std of its own.
    """
    how = config.data.standardise
    if how == "auto":
        how = "none" if data.moments is None else "per_feature" if len(data.shape) == 1 else "all"
    if how == "none":
        return config
    if data.moments is None:
        raise UserError(
            f"data.standardise={how!r} is for real numbers: {data.version} holds "
            f"{data.examples.dtype}, which a likelihood of levels encodes by itself"
        )
    found: dict[str, float | tuple[float, ...]]
    if how == "all":
        mean, variance = data.moments.of_all
        found = {"mean": mean, "std": moments.spread(variance)}
    else:
        found = {
            "mean": tuple(data.moments.mean.tolist()),
            "std": tuple(map(moments.spread, data.moments.variance.tolist())),
        }
    block = dict(config.model.likelihood)
    for name, value in found.items():
        if name in block and not _equal(block[name], value):
            raise UserError(
                f"model.likelihood.{name} is {_short(block[name])}, but data.standardise={how!r} "
                f"finds {_short(value)}: the data have changed, or {name} was set beside it"
            )
    block |= found
    return dataclasses.replace(config, model=dataclasses.replace(config.model, likelihood=block))


def _equal(one: float | tuple[float, ...], other: float | tuple[float, ...]) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def _short(value: float | tuple[float, ...]) -> str:
    numbers = value if isinstance(value, tuple) else (value,)
    text = ", ".join(f"{number:.7g}" for number in numbers[:3])
    return f"{text}, ..." if len(numbers) > 3 else text
