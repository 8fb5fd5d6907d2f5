"""From plain values to a checked config and back."""

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from vdm.choices import unknown
from vdm.run.config.schema import (
    BOUNDS,
    DEQUANTISATIONS,
    MAX_COMPRESS_BATCH,
    MAX_RESOLUTION,
    MAX_STEPS,
    ON_NAN,
    CompressConfig,
    Config,
)
from vdm.run.errors import UserError


def parse_num_steps(text: str) -> tuple[int | None, ...]:
    """Return the values of T in `text`, None for "inf"; raises UserError for anything else."""
    values: list[int | None] = []
    for word in (word.strip() for word in text.split(",")):
        if word == "inf":
            values.append(None)
        elif word.isascii() and word.isdigit() and 0 < int(word) <= MAX_STEPS:
            values.append(int(word))
        else:
            raise UserError(
                f"num_steps must be positive whole numbers (at most {MAX_STEPS:,}) or inf: "
                f"got {word!r}"
            )
    return tuple(values)


def parse_words(what: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return the words in `text`, each once; raises UserError for one that is not known."""
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in words:
        if word not in known:
            raise UserError(unknown(what, word, known))
    return words


def parse_counts(text: str) -> tuple[int, ...]:
    """Return the whole numbers in `text`; raises UserError for anything else or below 1."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not (word.isascii() and word.isdigit() and int(word) >= 1):
            raise UserError(f"num_samples must be whole numbers of at least 1: got {word!r}")
    return tuple(dict.fromkeys(int(word) for word in words))


def from_dict(values: Mapping[str, Any]) -> Config:
    """Return the checked Config; raises UserError for an unknown, missing or mistyped key."""
    config = _build(Config, values, prefix="")
    _check(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Return the config as plain nested dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def default_values() -> ml_collections.ConfigDict:
    """Return all that has a default value, for config files to build on.

    What they have to add is `data.name`, the model's blocks and `train.num_steps`. What a file
    has not, a command cannot override.
    """
    blocks = {name: kind for name, kind in typing.get_type_hints(Config).items() if name != "seed"}
    values = {name: _defaults(block) for name, block in blocks.items()}
    return ml_collections.ConfigDict({"seed": 0, **values})


def _defaults(block: type) -> dict[str, Any]:
    """Return the fields of a block that have a default value."""
    missing = dataclasses.MISSING
    values = {}
    for field in dataclasses.fields(block):
        if field.default is not missing:
            values[field.name] = field.default
        elif field.default_factory is not missing:
            values[field.name] = field.default_factory()
    return values


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


def _build(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        what = f"config key {prefix[:-1]!r}" if prefix else "a config"
        raise UserError(f"{what} must be a block: got {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    types = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise UserError(unknown("config key", f"{prefix}{key}", [prefix + n for n in fields]))
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(types[name], values[name], prefix + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"config key {prefix + name!r} is missing")
    return cls(**arguments)


def _convert(kind: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, f"{key}.")
    if typing.get_origin(kind) is not None:  # a block of a name and arguments
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise UserError(f"config key {key!r} must be a block with a 'name': got {value!r}")
        return {name: _plain(item, f"{key}.{name}") for name, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config key {key!r} must be finite: got {value}")
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise UserError(
            f"config key {key!r} must be of type {kind.__name__}: got {value!r} "
            f"({type(value).__name__})"
        )
    return value


def _plain(value: Any, key: str) -> Any:
    """Check the value of an argument in a block: what JSON can hold, with tuples for lists."""
    if isinstance(value, list | tuple):
        return tuple(_plain(item, key) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config key {key!r} must be finite: got {value}")
    if not (value is None or isinstance(value, bool | int | float | str)):
        raise UserError(f"config key {key!r} must be a plain value: got {value!r}")
    return value


def check_compress(config: CompressConfig) -> None:
    """Raise UserError for numbers that a compressed file cannot have."""
    highest = {
        "num_steps": MAX_STEPS,
        "batch_size": MAX_COMPRESS_BATCH,
        "per_block": 2**31,
        "resolution": MAX_RESOLUTION,
    }
    for name, most in highest.items():
        if getattr(config, name) > most:
            raise UserError(
                f"compress.{name} must be at most {most:,}: got {getattr(config, name):,}"
            )


def _check(config: Config) -> None:
    check_compress(config.compress)
    at_least = {
        "train.num_steps": (config.train.num_steps, 1),
        "train.batch_size": (config.train.batch_size, 1),
        "train.accumulation_steps": (config.train.accumulation_steps, 1),
        "train.log_every": (config.train.log_every, 1),
        "train.checkpoint_every": (config.train.checkpoint_every, 1),
        "train.checkpoints_kept": (config.train.checkpoints_kept, 1),
        "train.sample_every": (config.train.sample_every, 0),
        "devices.fsdp": (config.devices.fsdp, 1),
        "devices.steps_per_dispatch": (config.devices.steps_per_dispatch, 1),
        "evaluate.batch_size": (config.evaluate.batch_size, 1),
        "evaluate.levels_per_example": (config.evaluate.levels_per_example, 1),
        "evaluate.num_probes": (config.evaluate.num_probes, 1),
        "evaluate.ode_steps": (config.evaluate.ode_steps, 0),
        "sample.batch_size": (config.sample.batch_size, 1),
        "sample.num_steps": (config.sample.num_steps, 1),
        "compress.num_steps": (config.compress.num_steps, 1),
        "compress.batch_size": (config.compress.batch_size, 1),
        "compress.per_block": (config.compress.per_block, 1),
        "compress.resolution": (config.compress.resolution, 0),
        "optimizer.warmup_steps": (config.optimizer.warmup_steps, 0),
        "optimizer.clip_norm": (config.optimizer.clip_norm, 0.0),
        "optimizer.weight_decay": (config.optimizer.weight_decay, 0.0),
    }
    if not 0 <= config.seed < 2**32:
        raise UserError(f"config key 'seed' must be in [0, 2³²): got {config.seed}")
    for key, (value, lowest) in at_least.items():
        if not value >= lowest:
            raise UserError(f"config key {key!r} must be at least {lowest}: got {value}")
    for key in ("num_steps", "log_every", "checkpoint_every", "sample_every"):
        value = getattr(config.train, key)
        if value % config.devices.steps_per_dispatch:
            raise UserError(
                f"train.{key} must be a multiple of devices.steps_per_dispatch: got {value} and "
                f"{config.devices.steps_per_dispatch}"
            )
    if config.train.batch_size % config.train.accumulation_steps:
        raise UserError(
            f"train.batch_size must be a multiple of train.accumulation_steps: got "
            f"{config.train.batch_size} and {config.train.accumulation_steps}"
        )
    for key in ("learning_rate", "schedule_learning_rate", "shape_learning_rate"):
        value = getattr(config.optimizer, key)
        if not value > 0:
            raise UserError(f"config key 'optimizer.{key}' must be positive: got {value}")
    shares = {f"optimizer.{k}": getattr(config.optimizer, k) for k in ("b1", "b2", "ema_decay")}
    for key, value in {**shares, "train.cond_dropout": config.train.cond_dropout}.items():
        if not 0 <= value < 1:
            raise UserError(f"config key {key!r} must be in [0, 1): got {value}")
    if not config.evaluate.tolerance > 0:
        value = config.evaluate.tolerance
        raise UserError(f"config key 'evaluate.tolerance' must be positive: got {value}")
    parse_num_steps(config.evaluate.num_steps)
    parse_counts(config.evaluate.num_samples)
    parse_words("evaluate.bound", config.evaluate.bound, BOUNDS)
    parse_words("evaluate.dequantisation", config.evaluate.dequantisation, DEQUANTISATIONS)
    choices = {
        "data.augment": (config.data.augment, ("none", "vdm", "group")),
        "data.in_memory": (config.data.in_memory, ("auto", "yes", "no")),
        "train.on_nan": (config.train.on_nan, ON_NAN),
        "evaluate.divergence": (config.evaluate.divergence, ("hutchinson", "exact")),
        "optimizer.decay": (config.optimizer.decay, ("constant", "cosine")),
    }
    for key, (word, words) in choices.items():
        if word not in words:
            raise UserError(unknown(key, word, words))
