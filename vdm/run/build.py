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

from vdm import likelihoods, networks, schedules, sde
from vdm.choices import unknown
from vdm.model import FINALS, HEADS, VDM
from vdm.run import condition, laws, objective, optim
from vdm.run.condition import Condition
from vdm.run.config import Config, SampleConfig
from vdm.run.dataset import Dataset
from vdm.run.errors import UserError, as_user_error
from vdm.run.step import Trainer
from vdm.samplers import SAMPLERS as PLAIN_SAMPLERS, Sampler
from vdm.samplers.grids import GRIDS

SCHEDULES: Mapping[str, Callable[..., Any]] = {
    "linear": schedules.linear,
    "cosine": schedules.cosine,
    "learned_linear": schedules.learned_linear,
    "learned_monotone": schedules.learned_monotone,
    "learned_unpinned": schedules.learned_unpinned,
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
SAMPLERS: Mapping[str, Callable[..., Sampler]] = {
    **PLAIN_SAMPLERS,
    "euler_maruyama": sde.euler_maruyama,
    "exponential": sde.exponential,
}


def model(config: Config) -> VDM:
    """Return the model that a config describes; raises UserError for a bad name or argument."""
    parts = config.model
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
        vdm = VDM(schedule, network, likelihood, parts.prediction, parts.sigma_data)
    # Or `vdm sample` and `vdm evaluate` would be the first to say so.
    check_sampling(vdm, config.sample)
    check_clip(vdm, config.evaluate.clip_denoised)
    return vdm


def sampler(text: str) -> Sampler:
    """Return the sampler of a name, or of a name with arguments such as "heun:churn=0.2"."""
    name, _, rest = text.partition(":")
    if name not in SAMPLERS:
        raise UserError(unknown("sampler", name, SAMPLERS))
    known = inspect.signature(SAMPLERS[name]).parameters
    arguments = {}
    for word in rest.split(",") if rest else ():
        key, _, value = word.partition("=")
        if key not in known:
            raise UserError(unknown(f"argument of the sampler {name}", key, known))
        try:
            arguments[key] = float(value)
        except ValueError as error:
            raise UserError(f"sampler {text!r}: {key} must be a number: got {value!r}") from error
    with as_user_error(f"sampler {text!r}"):
        return SAMPLERS[name](**arguments)


def check_sampling(vdm: VDM, settings: SampleConfig) -> None:
    """Raise UserError for a way to sample that does not exist, or not for this model."""
    sampler(settings.sampler)
    for name, word, words in (("grid", settings.grid, GRIDS), ("final", settings.final, FINALS)):
        if word not in words:
            raise UserError(unknown(f"sample.{name}", word, words))
    check_clip(vdm, settings.clip_denoised)
    if settings.guidance != 1.0 and not vdm.network.optional_cond:
        raise UserError(
            f"guidance={settings.guidance} needs a model that was trained with and without its "
            "condition: model.network.optional_cond=True and train.cond_dropout above 0"
        )


def check_clip(vdm: VDM, clip_denoised: bool) -> None:
    """Raise UserError if x̂ is to be clipped to the range of data that has none."""
    if clip_denoised and vdm.likelihood.bounds is None:
        raise UserError("clip_denoised is for integer data: real numbers have no range to clip to")


def trainer(config: Config, data: Dataset) -> Trainer:
    """Return all that a training step is made of; raises UserError for what does not fit."""
    made = without_data(config)
    check_fit(made.model, data, condition.build(made.model.network, data, config.data.augment))
    return made


def without_data(config: Config) -> Trainer:
    """Return the parts that a config describes, not held against a data set."""
    vdm = model(config)
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


def check_dropped(network: Any, config: Config) -> None:
    """Raise UserError unless conditions are dropped just where the network can go without."""
    rate = config.train.cond_dropout
    if network.optional_cond and network.num_classes is None:
        raise UserError(
            "model.network.optional_cond=True needs model.network.num_classes: training gives "
            "classes, not vectors"
        )
    if rate and not network.optional_cond:
        raise UserError(
            f"train.cond_dropout={rate} needs model.network.optional_cond=True, a network that can "
            "go without its condition"
        )
    if rate and config.data.augment != "none":
        raise UserError(
            f"train.cond_dropout={rate} would drop what data.augment={config.data.augment!r} tells "
            "the network as well: expected one of the two"
        )
    if network.optional_cond and not rate:
        raise UserError(
            "model.network.optional_cond=True needs train.cond_dropout above 0: without it the "
            "network never learns to go without its condition"
        )


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
