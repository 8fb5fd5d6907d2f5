"""From plain values to a checked config and back."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from vdm.choices import unknown
from vdm.run.config import fields
from vdm.run.config.schema import CHAIN_STEPS, NUM_SAMPLES, NUM_STEPS, Config
from vdm.run.errors import UserError

T = typing.TypeVar("T")


class NumSteps(typing.NamedTuple):
    """Values of T: those of the schedule's own steps, None for "inf", and those of chains."""

    plain: tuple[int | None, ...]
    chains: tuple[int, ...]


def parse_num_steps(text: str) -> NumSteps:
    """Return the values of T in `text`, each once; raises UserError for anything else."""
    _refuse(NUM_STEPS.problem("num_steps", text))
    return NumSteps(NUM_STEPS.values(text), NUM_STEPS.of_chains(text))


def parse_counts(text: str) -> tuple[int, ...]:
    """Return the numbers of draws in `text`, each once; raises UserError for anything else."""
    _refuse(NUM_SAMPLES.problem("num_samples", text))
    return tuple(number for number in NUM_SAMPLES.values(text) if number is not None)


def parse_chain_steps(text: str) -> tuple[int, ...]:
    """Return the numbers of steps in `text`, each once; raises UserError for anything else."""
    _refuse(CHAIN_STEPS.problem("num_steps", text))
    return tuple(number for number in CHAIN_STEPS.values(text) if number is not None)


def from_dict(values: object) -> Config:
    """Return the checked Config; raises UserError for a key or a value that is not valid."""
    config = _build(Config, values, prefix="")
    _check_pairs(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Return the config as plain nested dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def default_values() -> ml_collections.ConfigDict:
    """Return every key that has a default value, as the start of a config file.

    A file adds `data.name`, the model's blocks and `train.num_steps`. A command cannot override a
    key that the file lacks, but for the arguments of those blocks.
    """
    values = _defaults(Config)
    for name, block in typing.get_type_hints(Config).items():
        if name not in values:
            values[name] = _defaults(block)
    return ml_collections.ConfigDict(values)


def _defaults(block: type) -> dict[str, Any]:
    """Return the fields of a block that have a default value."""
    known = {field.name: field.default for field in fields.of(block)}
    return {name: value for name, value in known.items() if value is not dataclasses.MISSING}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the config of `to_dict` with one key for every value, such as "train.num_steps"."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            # JSON has no tuples.
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _build(block: type[T], values: object, prefix: str) -> T:
    if not isinstance(values, Mapping):
        raise UserError(f"{prefix[:-1] or 'a config'} must be a block: got {values!r}")
    kinds = typing.get_type_hints(block)
    for key in values:
        if key not in kinds:
            raise UserError(unknown("config key", f"{prefix}{key}", [prefix + n for n in kinds]))
    known, missing = {field.name: field for field in fields.of(block)}, dataclasses.MISSING
    arguments: dict[str, Any] = {}
    for name, kind in kinds.items():
        key = prefix + name
        if name not in values:
            default = getattr(block, name, missing) if name not in known else known[name].default
            if default is missing:
                raise UserError(f"config key {key!r} is missing")
        elif name in known:
            value = _plain_block(values[name], key) if known[name].kind is Mapping else values[name]
            arguments[name] = fields.checked(known[name], value, key)
        else:
            arguments[name] = _build(kind, values[name], f"{key}.")
    return block(**arguments)


def _plain_block(value: object, key: str) -> dict[str, object]:
    """Return a block of a name and its arguments; raises UserError for anything else."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise UserError(f"{key} must be a block with a 'name': got {value!r}")
    return {name: _plain(item, f"{key}.{name}") for name, item in value.items()}


def _plain(value: object, key: str) -> object:
    """Check the value of an argument in a block: what JSON can hold, with tuples for lists."""
    if isinstance(value, list | tuple):
        return tuple(_plain(item, key) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key} must be finite: got {value}")
    if not (value is None or isinstance(value, bool | int | float | str)):
        raise UserError(f"{key} must be a plain value: got {value!r}")
    return value


def _check_pairs(config: Config) -> None:
    """Raise UserError for two values that are valid alone but not together."""
    per_dispatch = config.devices.steps_per_dispatch or 1  # what is chosen fits
    for key in ("num_steps", "log_every", "checkpoint_every", "sample_every"):
        value = getattr(config.train, key)
        if value % per_dispatch:
            raise UserError(
                f"train.{key} must be a multiple of devices.steps_per_dispatch: got {value} and "
                f"{per_dispatch}"
            )
    if config.train.init_optimizer == "kept" and not config.train.init_from:
        raise UserError("train.init_optimizer='kept' needs train.init_from, a run to begin with")
    watched = config.train.validation_examples
    if watched and config.train.validate_every % per_dispatch:
        raise UserError(
            f"train.validate_every must be a multiple of devices.steps_per_dispatch: got "
            f"{config.train.validate_every} and {per_dispatch}"
        )
    for key, off in (("keep", "latest"), ("patience", 0)):
        if getattr(config.train, key) != off and not watched:
            raise UserError(
                f"train.{key}={getattr(config.train, key)!r} needs a validation split: "
                "train.validation_examples above 0"
            )
    if config.train.batch_size % config.train.accumulation_steps:
        raise UserError(
            f"train.batch_size must be a multiple of train.accumulation_steps: got "
            f"{config.train.batch_size} and {config.train.accumulation_steps}"
        )


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise UserError(problem)
