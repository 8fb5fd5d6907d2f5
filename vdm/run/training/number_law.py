"""The law of the number of points of sets, found from the examples that a run is trained on."""

import dataclasses

from vdm import sets
from vdm.run.config import Config
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError


def resolved(config: Config, data: Dataset) -> Config:
    """Return the config with the probabilities of a histogram in model.number_law, for sets.

    They are those of `vdm.sets.number_law` for the training examples. A config that has them
    already is returned as it is. Raises UserError for one that has others.
    """
    block = dict(config.model.number_law)
    if data.points is None or block["name"] != "histogram":
        return config
    found = sets.number_law(data.points, data.shape[0]).probs
    if block.setdefault("probs", found) != found:
        raise UserError(
            "model.number_law.probs are not those of the training examples: the data have changed, "
            "or probs were set (leave them out)"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, number_law=block))
