"""The configuration of a run: from an ml_collections file to frozen, checked dataclasses.

A config file describes an experiment in plain values. It is turned once into the
dataclasses below; a key that they do not have, or a value of the wrong type, is an
error that names the key (and the nearest valid one) before anything else happens.
"""

import dataclasses
import importlib.util
import math
import pathlib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from vdm.choices import unknown
from vdm.run.errors import UserError
from vdm.run.files import read_json, write_json

CONFIG_FILE = "config.json"
# Beyond this T, float32 no longer resolves the difference of λ between two steps.
MAX_STEPS = 100_000
MAX_COMPRESS_BATCH, MAX_RESOLUTION = 2**20, 20
ON_NAN = ("stop", "roll_back")
BOUNDS = ("vlb", "ode")
DEQUANTISATIONS = ("truncated_normal", "uniform")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which data set, and what is done with it in training.

    `name` is one of `vdm.run.data` or an image set of tensorflow-datasets; `path` is the file
    or folder of "arrays" and "images". `augment`: "none", "vdm" or "group" (see
    `vdm.run.augment`). `in_memory`: "yes" or "no" (read while training), or "auto", by size.
    """

    name: str  # digits, swirl, mixture, arrays, images, or a set of tensorflow-datasets
    path: str = ""  # file or folder of "arrays" and "images"
    augment: str = "none"  # of images: "none", "vdm" (each kind with probability ½) or "group"
    in_memory: str = "auto"  # "yes", "no" (read while training) or "auto", by size


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The parts of the model; each block is a name and the arguments of its constructor."""

    schedule: Mapping[str, Any]  # λ(t) between its two ends
    network: Mapping[str, Any]  # what predicts; its λ range is the schedule's unless set
    likelihood: Mapping[str, Any]  # p(x|z₀), and with it the kind of data
    prediction: str = "eps"  # what the network's output means: "eps", "x", "v", "score", "edm"
    sigma_data: float = 0.5  # of the encoded data; used by the "edm" prediction


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and clipping for the network, Adam for a learned schedule."""

    learning_rate: float = 2e-4  # of the network, after the warm-up
    schedule_learning_rate: float = 1e-2  # of learned end points, in units of λ
    shape_learning_rate: float = 2e-2  # of a learned interior
    decay: str = "constant"  # after the warm-up: "constant" or "cosine" (to zero)
    warmup_steps: int = 100  # linear, from zero
    b1: float = 0.9  # Adam's decay of the gradient's mean
    b2: float = 0.99  # Adam's decay of the gradient's square
    weight_decay: float = 0.01  # of the network's parameters, not the schedule's
    clip_norm: float = 1.0  # of the network's gradient and of the ends'; 0 turns it off
    ema_decay: float = 0.9999  # of the averaged parameters, after its own warm-up


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What the network descends, and how the noise levels of a batch are drawn.

    `weighting` is a name of `vdm.weightings` with its arguments; "elbo" is the bound.
    `law` of λ: "schedule" (uniform times), "sigmoid" or "adaptive", with its arguments;
    `draw` of the uniform positions: "low_discrepancy", "stratified" or "uniform".
    `num_steps` is the T of the bound that is trained on, "inf" or a number.
    """

    # w(λ) of the loss; "elbo" is the bound itself
    weighting: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "elbo"})
    # the density that λ is drawn with; no influence on what is minimised
    law: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "schedule"})
    draw: str = "low_discrepancy"  # "low_discrepancy", "stratified" or "uniform" positions
    num_steps: str = "inf"  # T of the bound that is trained on: "inf" or a number


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train, and how often to write things down (all in steps).

    `on_nan`, when the loss is not finite: "stop", or "roll_back" to the last checkpoint and go
    on from there with other noise, a few times at most.
    """

    num_steps: int  # training steps in all
    batch_size: int = 128  # examples a step, over all devices and processes
    cond_dropout: float = 0.0  # share of examples shown without their class, for guidance
    accumulation_steps: int = 1  # micro-batches, one after the other, that make a batch
    log_every: int = 100  # a line of metrics, the means since the last one
    checkpoint_every: int = 1000  # and at the end, and on SIGTERM
    checkpoints_kept: int = 2  # the latest ones
    sample_every: int = 0  # a page of samples; 0 for never
    tensorboard: bool = False  # metrics as TensorBoard's events too
    on_nan: str = "stop"  # a loss that is not finite: "stop", or "roll_back" to a checkpoint


@dataclasses.dataclass(frozen=True)
class DevicesConfig:
    """How the work is cut: over how many devices parameters are, and steps a dispatch.

    All devices of all processes take part; those that do not cut parameters cut the batch
    alone. Several steps a dispatch spare an accelerator the wait for the host between two
    short steps; on CPU they are slower, for XLA's convolutions are slow in a loop there.
    """

    fsdp: int = 1  # devices over which parameters and optimiser state are cut
    steps_per_dispatch: int = 1  # training steps in one call of the accelerator


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Which bounds to evaluate, and how carefully; what may be several is comma-separated.

    `bound`: "vlb", "ode" or both. The variational bound: `law` of λ for T = ∞ is "training" (as
    the run was trained), "schedule" or "sigmoid", with an influence on the standard error alone;
    `clip_denoised` measures it with x̂ clipped to the data's range as well. The ODE's:
    `dequantisation` of integers, "truncated_normal" or "uniform"; `num_samples`, the draws K
    of an example; `divergence`, "hutchinson" with `num_probes` or "exact"; `ode_steps` even
    steps, or with 0 as many as keep the local error below `tolerance`.
    """

    bound: str = "vlb"  # "vlb", "ode" or "vlb,ode"
    batch_size: int = 256  # rows a call; no influence on results
    levels_per_example: int = 64  # stratified noise levels drawn for each example
    num_steps: str = "inf"  # comma-separated values of T
    law: str = "training"  # of λ at T = inf: "training", "schedule" or "sigmoid"
    clip_denoised: bool = False  # measure the bound with x̂ clipped as well
    dequantisation: str = "truncated_normal"  # ode: or "uniform", or both
    num_samples: str = "1"  # ode: comma-separated numbers K of draws of an example
    divergence: str = "hutchinson"  # ode: or "exact", at most 256 dimensions
    num_probes: int = 1  # ode: of "hutchinson"
    ode_steps: int = 0  # ode: even steps; 0 for as many as the tolerance asks for
    tolerance: float = 1e-4  # ode: of the local error, where steps adapt
    seed: int = 0  # of all the evaluation's noise


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How to draw samples.

    `sampler` is a name with its arguments, such as "heun:churn=0.2". `grid` of noise levels:
    "time" (even on the schedule), "lambda" or "edm". `guidance` above 1 exaggerates the class,
    0 ignores it (for networks with optional_cond). `clip_denoised` keeps x̂ within the range of
    integer data; `final` is the "mode" of p(x|z₀) or a "draw" from it.
    """

    batch_size: int = 64  # samples a call; no influence on results
    num_steps: int = 250  # from noise to data
    sampler: str = "ancestral"  # a name, with arguments as in "heun:churn=0.2"
    grid: str = "time"  # of noise levels: "time", "lambda" or "edm"
    guidance: float = 1.0  # above 1 exaggerates the class, 0 ignores it
    clip_denoised: bool = False  # keep x̂ in the range of integer data
    final: str = "mode"  # from z₀ to data: the "mode" of p(x|z₀) or a "draw" from it
    seed: int = 0  # sample i depends on it and on i alone


@dataclasses.dataclass(frozen=True)
class CompressConfig:
    """How to compress: the file's length is nearly the bound with `num_steps` steps.

    `batch_size` examples go through the network together; `per_block` examples stand and fall
    together, and share the bits that each block needs to begin with. Latents are rounded to
    2^-`resolution` of a step's standard deviation.
    """

    num_steps: int = 100  # T of the bound that the length follows
    batch_size: int = 16  # examples a call of the network
    per_block: int = 1024  # examples that stand and fall together
    resolution: int = 2  # latents are rounded to 2^-this of a step's standard deviation


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a run is made of."""

    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    devices: DevicesConfig = DevicesConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    sample: SampleConfig = SampleConfig()
    compress: CompressConfig = CompressConfig()
    seed: int = 0  # of parameters, noise and the order of examples


# What may differ from the config in the workdir when a run is resumed: none of it
# changes what the steps already taken have computed.
RESUMABLE = (
    "data.in_memory",
    "data.path",  # to which the same data may have been moved; see `vdm.run.data.keep`
    "train.log_every",
    "train.checkpoint_every",
    "train.checkpoints_kept",
    "train.sample_every",
    "train.tensorboard",
    "train.on_nan",
    "devices.",
    "evaluate.",
    "sample.",
    "compress.",
)


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


def neighbour(config_file: str, name: str) -> ml_collections.ConfigDict:
    """Return the config of the file `name` beside a config file (its `__file__`), to build on."""
    # Config files are loaded by path, not imported, and so are their neighbours.
    path = pathlib.Path(config_file).with_name(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def load(workdir: pathlib.Path) -> Config:
    """Return the config that a workdir was made with; raises UserError if there is none."""
    path = workdir / CONFIG_FILE
    if not path.exists():
        raise UserError(f"{workdir} holds no run (no {CONFIG_FILE}): train one with `vdm train`")
    try:
        return from_dict(read_json(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def keep(config: Config, workdir: pathlib.Path) -> None:
    """Write the config into the workdir; raises UserError if another run lives there."""
    path = workdir / CONFIG_FILE
    if path.exists():
        old, new = flatten(to_dict(load(workdir))), flatten(to_dict(config))
        differ = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        longer = config.train.num_steps > old["train.num_steps"]
        fixed = [key for key in differ if not _may_change(key, config, longer)]
        if fixed:
            key = fixed[0]
            more = f" (and {len(fixed) - 1} more)" if len(fixed) > 1 else ""
            raise UserError(
                f"{workdir} holds a run with another config: {key} is {old.get(key)!r} there and "
                f"{new.get(key)!r} here{more}. Use another --workdir, or the same config to resume"
            )
    write_json(path, to_dict(config))


def _may_change(key: str, config: Config, longer: bool) -> bool:
    # With a constant learning rate a longer run passes through the same steps.
    same_steps = longer and config.optimizer.decay == "constant"
    return (key == "train.num_steps" and same_steps) or key.startswith(RESUMABLE)


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
