"""The law of the number of points of sets: what it takes from the training examples and the config.

A histogram has the probabilities of the examples, a network their largest number of points; the
conditions of a network are those of the model's own.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from vdm import sets
from vdm.networks import NumberNetwork
from vdm.run.config import Config
from vdm.run.config.blocks import construct
from vdm.run.config.words import NUMBER_LAWS
from vdm.run.data.condition import is_optional
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError, as_user_error

KEY = "model.number_law"
# What each law has from the examples, and what is said where it has another.
FOUND = {"histogram": ("probs", "are not those"), "network": ("largest", "is not that")}


def resolved(config: Config, data: Dataset) -> Config:
    """Return the config with what model.number_law has from the training examples, for sets.

    Of a histogram that are the probabilities of `vdm.sets.number_law`, of a network the largest
    number. A config that has these already is returned as it is. Raises UserError for one that has
    others, and for a network where the examples are no sets.
    """
    block = dict(config.model.number_law)
    if data.points is None and block["name"] == "network":
        raise UserError(f"{KEY} 'network' is for sets of points, and {data.name} has none")
    if data.points is None or block["name"] not in FOUND:
        return config
    name, says = FOUND[block["name"]]
    value = sets.number_law(data.points, data.shape[0]).probs if name == "probs" else data.shape[0]
    if block.setdefault(name, value) != value:
        raise UserError(
            f"{KEY}.{name} {says} of the training examples: the data have changed, or {name} "
            "was set (leave it out)"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, number_law=block))


def build(block: Mapping[str, Any], network: object) -> sets.NumberLaw | NumberNetwork | None:
    """Return the law that a config's block describes, for a model with this network.

    None for none, and where the training examples are not known yet. Raises UserError for a bad
    name or argument, and for a network of the number where the model's has no class and no vector.
    """
    kinds = {name: getattr(network, name, None) for name in ("num_classes", "cond_dim")}
    if block["name"] == "network" and all(size is None for size in kinds.values()):
        raise UserError(
            f"{KEY} 'network' needs model.network.num_classes or cond_dim: without a condition a "
            "histogram says the same"
        )
    made = construct(KEY, block, NUMBER_LAWS)
    if not isinstance(made, functools.partial):
        return made
    with as_user_error(f"{KEY} (network)"):
        return made(**kinds, optional_cond=is_optional(network))
