"""The config in a workdir, and which keys may differ when the run is resumed."""

import dataclasses
import importlib.util
import pathlib

import ml_collections

from vdm.run.config import own
from vdm.run.config.parse import flatten, from_dict, to_dict
from vdm.run.config.schema import Config
from vdm.run.errors import UserError
from vdm.run.system.files import read_json, write_json

CONFIG_FILE = "config.json"


# The keys that may differ from the config in the workdir when a run is resumed: none of them
# changes the steps that were already computed.
RESUMABLE = (
    "data.in_memory",
    "train.own_parts",
    "data.path",  # to which the same data may have been moved; see `vdm.run.data.keep`
    "train.log_every",
    "train.checkpoint_every",
    "train.checkpoints_kept",
    "train.sample_every",
    "train.validate_every",
    "train.keep",
    "train.patience",
    "train.tensorboard",
    "train.on_nan",
    "devices.",
    "evaluate.",
    "sample.",
    "compress.",
    "few_steps.",
)


# The keys that may differ too, and then begin a new phase (see `vdm.run.workdir.phases`): they
# change the steps to come, but not what a checkpoint holds.
OF_A_PHASE = (
    "train.num_steps",
    "train.batch_size",
    "train.accumulation_steps",
    "optimizer.learning_rate",
    "optimizer.schedule_learning_rate",
    "optimizer.shape_learning_rate",
    "optimizer.decay",
    "optimizer.warmup_steps",
    "optimizer.b1",
    "optimizer.b2",
    "optimizer.weight_decay",
    "optimizer.ema_decay",
)


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
        config = from_dict(read_json(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    own.make_importable(pathlib.Path(config.train.own_parts))
    return config


def names_own_parts(config: Config) -> bool:
    """Return whether a config names a part by its module."""
    blocks = (*dataclasses.asdict(config.model).values(), config.optimizer.method)
    names = [block["name"] for block in blocks if isinstance(block, dict)]
    names.append(own.split(config.sample.sampler)[0])
    return any(":" in name for name in names) or own.is_own_set(config.data.name)


def keep(config: Config, workdir: pathlib.Path) -> None:
    """Write the config into the workdir; raises UserError as `changes`."""
    changes(config, workdir)
    write_json(workdir / CONFIG_FILE, to_dict(config))


def changes(config: Config, workdir: pathlib.Path) -> list[str]:
    """Return how the steps to come will differ from those of the config in a workdir, in words.

    That is a text such as "train.batch_size is 64, was 32" for each key; nothing where they will
    not differ. Raises UserError if the workdir holds another run.
    """
    if not (workdir / CONFIG_FILE).exists():
        return []
    old = load(workdir)
    differ = differences(old, config)
    if fixed := [key for key in differ if key not in OF_A_PHASE]:
        there, here = differ[fixed[0]]
        more = f" (and {len(fixed) - 1} more)" if len(fixed) > 1 else ""
        raise UserError(
            f"{workdir} holds a run with another config: {fixed[0]} is {_said(there)} there and "
            f"{_said(here)} here{more}. Use another --workdir, or the same config to resume"
        )
    # With a constant learning rate a longer run passes through the same steps.
    longer = config.train.num_steps > old.train.num_steps
    if list(differ) == ["train.num_steps"] and longer and config.optimizer.decay == "constant":
        return []
    return [f"{key} is {_said(new)}, was {_said(old)}" for key, (old, new) in differ.items()]


def differences(one: Config, other: Config) -> dict[str, tuple[object, object]]:
    """Return the keys that change a training in which two configs differ, with both values."""
    old, new = flatten(to_dict(one)), flatten(to_dict(other))
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(RESUMABLE)
    }


def _said(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
