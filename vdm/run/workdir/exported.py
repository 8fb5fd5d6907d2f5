"""A run as one file: parameters, config and what it was trained on, in the safetensors format.

It has all that sampling, scoring and coding need, and nothing to resume a training with. The file
stands for itself, or is a workdir's `model.safetensors` where there are no checkpoints.
"""

import json
import pathlib
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from vdm.run.config import Config, from_dict, own, to_dict
from vdm.run.data import Kept, kept_conditions
from vdm.run.data.condition import Condition
from vdm.run.errors import UserError
from vdm.run.system import document, tensors
from vdm.run.system.document import Place, Whole
from vdm.run.workdir import checkpoint

MODEL_FILE = "model.safetensors"
ENDING = ".safetensors"
FORMAT = "vdm run 1"
# The trees that a file holds.
PARAMS, LAW, CONDITIONS = "params", "law_state", "conditions"

T = TypeVar("T")


class Exported(NamedTuple):
    """What a file holds; the arrays are named by their places in the trees, keys by slashes."""

    config: Config
    data: Kept
    step: int
    kind: str  # of the parameters, "ema" or "raw"
    arrays: dict[str, np.ndarray]


class _About(NamedTuple):
    """The numbers of a run beside its config and its arrays."""

    step: Whole
    params: str


def found(workdir: pathlib.Path) -> pathlib.Path | None:
    """Return the file of an exported run: the path itself, or that of a workdir without others."""
    if workdir.suffix == ENDING and not workdir.is_dir():
        return workdir
    file = workdir / MODEL_FILE
    return file if file.exists() and not checkpoint.latest_step(workdir) else None


def named(tree: object, prefix: str) -> dict[str, np.ndarray]:
    """Return the leaves of a tree by their names below a prefix."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(prefix, path): np.asarray(jax.device_get(leaf)) for path, leaf in leaves}


def write(path: pathlib.Path, run: Exported) -> None:
    """Write a run into a file, which is there only when it is whole."""
    about = {
        "format": FORMAT,
        "config": json.dumps(to_dict(run.config)),
        "data": json.dumps(document.plain(run.data)),
        "run": json.dumps({"step": run.step, "params": run.kind}),
    }
    tensors.write(path, about, run.arrays)


def read(path: pathlib.Path) -> Exported:
    """Return the run in a file; raises UserError for a file that is damaged or no exported run."""
    expected = "exported run: expected one that `vdm export` wrote"
    about, arrays, _ = tensors.read(path, FORMAT, expected)
    place = Place(path)
    numbers = document.read(_About, json.loads(about["run"]), place)
    config = from_dict(json.loads(about["config"]))
    own.make_importable(pathlib.Path(config.train.own_parts))
    return Exported(
        config=config,
        data=document.read(Kept, json.loads(about["data"]), place),
        step=numbers.step,
        kind=numbers.params,
        arrays=arrays,
    )


def of_condition(condition: Condition) -> dict[str, np.ndarray]:
    """Return the arrays of a run's scales and conditions, by their names in a file."""
    return {f"{CONDITIONS}/{k}": v for k, v in kept_conditions.to_arrays(condition).items()}


def condition(run: Exported, network: object, path: pathlib.Path) -> Condition:
    """Return the scales and conditions of a run; raises UserError where a network lacks one."""
    prefix = f"{CONDITIONS}/"
    own = {k.removeprefix(prefix): v for k, v in run.arrays.items() if k.startswith(prefix)}
    try:
        found = kept_conditions.from_arrays(own)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    kept_conditions.check_sizes(found, network, str(path))
    return found


def fill(template: T, run: Exported, prefix: str, path: pathlib.Path) -> T:
    """Return a tree of the template's shapes and shardings with the arrays below a prefix.

    Raises UserError where one of them is missing or has another shape or type.
    """

    def one(where: tuple[object, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = _name(prefix, where)
        array = run.arrays.get(name)
        if array is None or (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            got = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise UserError(
                f"{path} belongs to another version of the model: {name} must be {leaf.dtype} "
                f"{list(leaf.shape)}, got {got}"
            )
        return jax.device_put(array, leaf.sharding)

    return jax.tree_util.tree_map_with_path(one, template)


def _name(prefix: str, path: tuple[object, ...]) -> str:
    return f"{prefix}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
