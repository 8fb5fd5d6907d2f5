"""From a config to a model: names become constructors, and every mistake is found here.

Nothing in this module computes anything: shapes are traced, not evaluated, so a config
that does not fit its data is refused before the first compilation.
"""

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vdm import likelihoods, networks, schedules
from vdm.choices import unknown
from vdm.model import HEADS, VDM
from vdm.run import condition, laws, objective, optim
from vdm.run.condition import Condition
from vdm.run.config import Config
from vdm.run.dataset import Dataset
from vdm.run.errors import UserError, as_user_error
from vdm.run.step import Trainer
from vdm.samplers import SAMPLERS

SCHEDULES: Mapping[str, Callable[..., Any]] = {
    "linear": schedules.linear,
    "cosine": schedules.cosine,
    "learned_linear": schedules.learned_linear,
    "learned_monotone": schedules.learned_monotone,
    "beta_linear": schedules.beta_linear,
    "flow_matching": schedules.flow_matching,
    "edm": schedules.edm,
    "from_betas": schedules.from_betas,
}
NETWORKS: Mapping[str, Callable[..., Any]] = {"mlp": networks.MLP, "unet": networks.UNet}
LIKELIHOODS: Mapping[str, Callable[..., Any]] = {
    "discretised": likelihoods.discretised,
    "gaussian": likelihoods.gaussian,
}


def model(config: Config) -> VDM:
    """Return the model that a config describes; raises UserError for a bad name or argument."""
    parts = config.model
    if config.sample.sampler not in SAMPLERS:  # or `vdm sample` would be the first to say so
        raise UserError(unknown("sample.sampler", config.sample.sampler, SAMPLERS))
    if parts.prediction not in HEADS:
        raise UserError(unknown("model.prediction", parts.prediction, HEADS))
    schedule = _construct("schedule", parts.schedule, SCHEDULES)
    if schedule.log_snr_max <= 0:
        raise UserError(
            f"model.schedule.log_snr_max must be positive: got {schedule.log_snr_max}; at the "
            "clean end there would be more noise than data"
        )
    # The network sees the noise level on the scale of the schedule's range.
    ends = {"log_snr_max": schedule.log_snr_max, "log_snr_min": schedule.log_snr_min}
    network = _construct("network", {**ends, **parts.network}, NETWORKS)
    likelihood = _construct("likelihood", parts.likelihood, LIKELIHOODS)
    with as_user_error("model.sigma_data"):
        return VDM(schedule, network, likelihood, parts.prediction, parts.sigma_data)


def trainer(config: Config, data: Dataset) -> Trainer:
    """Return all that a training step is made of; raises UserError for what does not fit."""
    vdm = model(config)
    check_fit(vdm, data, condition.build(vdm.network, data, config.data.augment))
    optimizer = optim.build(config.optimizer, config.train.num_steps)
    aim = objective.build(config.objective, vdm)
    laws.for_evaluation(config.evaluate.law, aim.law)  # or `vdm evaluate` would be the first
    return Trainer(vdm, optimizer, aim, config)


def check_fit(vdm: VDM, data: Dataset, told: Condition) -> None:
    """Raise UserError unless the model can take this data: levels, dtype, shape, condition."""
    check_values(vdm, data)
    x = data.take(np.arange(1)).x
    with as_user_error(f"the model does not fit {data.version} {list(data.shape)}"):
        jax.eval_shape(vdm.init, jax.random.key(0), x, told.of_samples(np.arange(1)))


def levels(vdm: VDM) -> int | None:
    """Return the levels of a model of integers, None for one of real numbers."""
    return getattr(vdm.likelihood, "levels", None)


def check_values(vdm: VDM, data: Dataset) -> None:
    """Raise UserError unless integer data stays within the levels of the likelihood."""
    there = levels(vdm)
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


def _construct(
    what: str, block: Mapping[str, Any], options: Mapping[str, Callable[..., Any]]
) -> Any:
    """Call the constructor that a block names, once its arguments are known to be of its kind."""
    arguments = dict(block)
    name = arguments.pop("name")
    if name not in options:
        raise UserError(unknown(what, name, options))
    prefix = f"model.{what}."
    # Flax adds the two that are left out to every module; they are not the user's.
    known = {
        key: parameter
        for key, parameter in inspect.signature(options[name]).parameters.items()
        if key not in ("parent", "name")
    }
    for key, value in arguments.items():
        if key not in known:
            raise UserError(unknown("config key", prefix + key, [prefix + k for k in known]))
        kinds = _kinds(known[key].annotation)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"config key {prefix + key!r} must be {expected}: got {value!r}")
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in arguments:
            raise UserError(f"config key {prefix + key!r} is missing")
    with as_user_error(f"model.{what} ({name})"):
        return options[name](**arguments)


def _kinds(annotation: Any) -> tuple[type, ...]:
    """Return the plain types that an annotation takes: an int for a float, a tuple for a list."""
    parts = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    kinds: list[type] = []
    for part in parts:
        part = typing.get_origin(part) or part
        if part is float:
            kinds += [int, float]
        elif isinstance(part, type) and issubclass(part, Sequence) and part is not str:
            kinds.append(tuple)
        else:
            kinds.append(part)
    return tuple(dict.fromkeys(kinds))


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)
