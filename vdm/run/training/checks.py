"""Whether a model, its data and its settings fit together, checked before anything is computed."""

from typing import Any

import jax
import numpy as np

from vdm.model import VDM
from vdm.run.config import Config, SampleConfig, fields
from vdm.run.config.blocks import construct, of_text
from vdm.run.config.words import SAMPLERS
from vdm.run.data import condition as conditions
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError, as_user_error
from vdm.run.training import own_parts, scale
from vdm.samplers import Sampler


def sampler(text: str) -> Sampler:
    """Return the sampler of a name, or of a name with arguments such as "heun:churn=0.2"."""
    block = of_text("sample.sampler", text, SAMPLERS)
    made = construct("sample.sampler", block, SAMPLERS)
    own_parts.check_kind("sample.sampler", block["name"], made, Sampler)
    return made


def check_sampling(vdm: VDM, settings: SampleConfig) -> None:
    """Raise UserError for a way to sample that does not exist, or that does not fit this model."""
    fields.check(settings, "sample.")
    sampler(settings.sampler)
    check_clip(vdm, settings.clip_denoised)
    if settings.guidance != 1.0 and not conditions.is_optional(vdm.network):
        raise UserError(
            f"guidance={settings.guidance} needs a model that was trained with and without its "
            "condition: model.network.optional_cond=True and train.cond_dropout above 0"
        )


def check_clip(vdm: VDM, clip_denoised: bool) -> None:
    """Raise UserError if x̂ is to be clipped to the range of data that has none."""
    if clip_denoised and vdm.likelihood.bounds is None:
        raise UserError("clip_denoised is for integer data: real numbers have no range to clip to")


def check_unconditional(vdm: VDM, unconditional: bool) -> None:
    """Raise UserError if the condition is to be left out of a model that never was without it."""
    if unconditional and not conditions.is_optional(vdm.network):
        raise UserError(
            "unconditional is for a model that was trained with and without its condition: "
            "model.network.optional_cond=True and train.cond_dropout above 0"
        )


def check_fit(vdm: VDM, condition: Condition, data: Dataset) -> None:
    """Raise UserError unless the model can take this data: levels, dtype, shape, conditions."""
    conditions.check(condition, data)
    check_values(vdm, data)
    x = data.take(np.arange(1)).x
    with as_user_error(f"the model does not fit {data.version} {list(data.shape)}"):
        jax.eval_shape(vdm.init, jax.random.key(0), x, condition.of_samples(np.arange(1)))
    scale.check(vdm, data)


def check_data(vdm: VDM, shape: tuple[int, ...], condition: Condition, data: Dataset) -> None:
    """Raise UserError unless the data are like those that a model of this shape was trained on.

    Of their conditions only those of `condition` are looked at.
    """
    if data.shape != shape:
        raise UserError(
            f"the model expects examples of shape {list(shape)}: got {data.version} of shape "
            f"{list(data.shape)}"
        )
    conditions.check(condition, data)
    check_values(vdm, data)
    with as_user_error(f"the model does not fit {data.version}"):
        jax.eval_shape(vdm.likelihood.encode, data.take(np.arange(1)).x)


def check_values(vdm: VDM, data: Dataset) -> None:
    """Raise UserError unless integer data stays within the levels of the likelihood."""
    there = vdm.likelihood.levels
    if there is None:
        return
    if data.levels is not None and there != data.levels:
        raise UserError(
            f"model.likelihood.levels is {there}, but {data.name} has {data.levels} levels "
            f"(0 to {data.levels - 1})"
        )
    if data.largest is not None and data.largest.value >= there:
        raise UserError(
            f"model.likelihood.levels is {there} (0 to {there - 1}), but the largest value of "
            f"{data.version} is {data.largest.value}, in {data.largest.where}"
        )


def check_dropped(network: Any, config: Config) -> None:
    """Raise UserError unless conditions are dropped exactly if the network works without them."""
    rate = config.train.cond_dropout
    optional = conditions.is_optional(network)
    if rate and not optional:
        raise UserError(
            f"train.cond_dropout={rate} needs model.network.optional_cond=True: a network that "
            "also works without its condition"
        )
    if rate and config.data.augment != "none":
        raise UserError(
            f"train.cond_dropout={rate} would also drop the flag of "
            f"data.augment={config.data.augment!r}: expected only one of the two"
        )
    if optional and not rate:
        raise UserError(
            "model.network.optional_cond=True needs train.cond_dropout above 0: otherwise the "
            "network never learns to work without its condition"
        )
