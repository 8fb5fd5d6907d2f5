"""The config in a workdir, and which keys may differ when the run is resumed."""

import importlib.util
import pathlib

import ml_collections

from vdm.run.config.parse import flatten, from_dict, to_dict
from vdm.run.config.schema import Config
from vdm.run.errors import UserError
from vdm.run.system.files import read_json, write_json

CONFIG_FILE = "config.json"


# The keys that may differ from the config in the workdir when a run is resumed: none of them
# changes the steps that were already computed.
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
    """Write the config into the workdir; raises UserError if the workdir holds another run."""
    check_kept(config, workdir)
    write_json(workdir / CONFIG_FILE, to_dict(config))


def check_kept(config: Config, workdir: pathlib.Path) -> None:
    """Raise UserError if the workdir holds a run with another config; writes nothing."""
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
                f"{workdir} holds a run with another config: {key} is {_said(old.get(key))} there "
                f"and {_said(new.get(key))} here{more}. Use another --workdir, or the same "
                "config to resume"
            )


def _said(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _may_change(key: str, config: Config, longer: bool) -> bool:
    # With a constant learning rate a longer run passes through the same steps.
    same_steps = longer and config.optimizer.decay == "constant"
    return (key == "train.num_steps" and same_steps) or key.startswith(RESUMABLE)
