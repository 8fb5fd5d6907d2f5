"""A checkpoint of the official code as a run.

It is one flax msgpack (google-research/vdm) of {step, params,
ema_params, opt_state}. Parameters, their average and the step are kept; the optimiser starts from
zero. Where the parameters contradict the config, the parameters win. The config gives the rest: the
data, the range of λ that the network was built for, and how to continue training.
"""

import pathlib
import shutil
from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm import VDM, interop
from vdm.networks import UNet
from vdm.run import config as configs, data, mesh as meshes
from vdm.run.config import Config
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError, as_user_error
from vdm.run.importing.checkpoint_file import Checkpoint, read
from vdm.run.importing.settings import SCHEDULES, settle
from vdm.run.system import lock
from vdm.run.system.files import check_writable
from vdm.run.training import parts, program as programs, standardise
from vdm.run.training.step import Batch, TrainState
from vdm.run.workdir import checkpoint

STAGING = ".importing"


class Imported(NamedTuple):
    """A run that is ready to be written."""

    config: Config
    dataset: Dataset
    state: TrainState
    lines: list[tuple[str, str]]  # what was found, to be shown


def prepare(path: pathlib.Path, config: Config, stated: Collection[str]) -> Imported:
    """Return the run that a checkpoint makes with a config, without writing anything.

    `stated` are the keys that the command itself set. Raises UserError where a checkpoint is not
    what it should be, where the parameters contradict a value of the command, and where the data
    set is not available or has another kind of image.
    """
    found = read(path)
    num_groups = config.model.network.get("num_groups", 32)
    trees = {}
    for name, tree in (("params", found.params), ("ema_params", found.ema)):
        with as_user_error(f"{path} ({name})"):
            trees[name] = interop.official(tree, num_groups=num_groups, keep_conditioning=False)
    (model, params), (_, ema) = trees["params"], trees["ema_params"]
    if differs := _difference(found):
        raise UserError(f"{path}: params and ema_params belong to different models: {differs}")
    config, replaced = settle(config, model, stated)
    try:
        dataset = data.load(config.data, "train")
    except UserError as error:
        raise UserError(
            f"an import needs the data set, and nothing was written: {error}"
        ) from error
    channels = params["network"]["conv_out"]["bias"].shape[0]
    if len(dataset.shape) != 3 or dataset.shape[-1] != channels:
        raise UserError(
            f"{path} models images [height, width, {channels}]: got {dataset.version} of shape "
            f"{list(dataset.shape)}"
        )
    config = standardise.resolved(config, dataset)
    trainer, condition = parts.fitted(config, dataset)
    one = np.arange(1)
    example = Batch(dataset.take(one).x, condition.of_samples(one))
    template = programs.template(trainer, meshes.for_results(config), example)
    state = TrainState(
        step=jnp.asarray(found.step),
        params=params,
        ema=ema,
        opt_state=trainer.optimizer.init(params),
        law_state=trainer.objective.law.init(),
        rollbacks=jnp.asarray(0),
    )
    state = jax.tree.map(
        lambda leaf, like: jax.device_put(leaf.astype(like.dtype), like.sharding), state, template
    )
    return Imported(config, dataset, state, [*_describe(found, trainer.model, state), *replaced])


def write(run: Imported, workdir: pathlib.Path) -> None:
    """Write the run into a workdir that holds none; a half-written run is never mistaken for a run.

    Raises UserError for a workdir that holds a run, is in use or cannot be written to.
    """
    with lock.held(workdir):
        # An empty folder of checkpoints is what a training leaves that was refused.
        folder = checkpoint.folder_of(workdir)
        there = [workdir / configs.CONFIG_FILE, *(folder.iterdir() if folder.is_dir() else ())]
        if taken := [path for path in there if path.exists()]:
            raise UserError(
                f"{workdir} holds a run already ({taken[0].name}): use another --workdir"
            )
        staging = workdir / STAGING
        shutil.rmtree(staging, ignore_errors=True)  # of an import that was killed
        check_writable(staging)
        try:
            with checkpoint.manager(staging, kept=1) as checkpoints:
                checkpoint.save(checkpoints, run.state)
            data.keep(run.dataset, staging, data.seen_from(workdir, run.config.data.path))
            configs.keep(run.config, staging)
            # The config last: a folder without it is not a run.
            for name in (checkpoint.folder_of(staging).name, data.DATA_FILE, configs.CONFIG_FILE):
                (staging / name).rename(workdir / name)
        except OSError as error:
            raise UserError(f"cannot write to {workdir}: {error.strerror}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _difference(found: Checkpoint) -> str:
    """Return the first leaf in which the two trees differ, with both shapes, "" for none."""
    shapes, averaged = (
        {name: leaf.shape for name, leaf in interop.flatten(tree).items()}
        for tree in (found.params, found.ema)
    )
    for name in sorted(shapes.keys() | averaged.keys()):
        ours, theirs = (of.get(name, "nothing") for of in (shapes, averaged))
        if ours != theirs:
            return f"leaf {name!r} has shape {ours} in one and {theirs} in the other"
    return ""


def _describe(found: Checkpoint, model: VDM, state: TrainState) -> list[tuple[str, str]]:
    network, leaves = model.network, interop.flatten(found.params)
    assert isinstance(network, UNet)  # the official one
    rows = leaves["score_model/dense0/kernel"].shape[0]
    conditioning = (
        "none" if rows == network.channels else "left out; exact for images that were not augmented"
    )
    high, low = np.asarray(model.log_snr(state.ema)(jnp.asarray([0.0, 1.0])))
    return [
        ("channels", str(network.channels)),
        ("blocks per side", str(network.num_blocks)),
        ("attention", network.attention),
        ("Fourier features", ", ".join(map(str, network.fourier_exponents)) or "none"),
        ("schedule", f"{SCHEDULES[type(model.schedule)]}, λ from {high:.4f} to {low:.4f}"),
        ("the network's range of λ", f"{network.log_snr_max} to {network.log_snr_min}"),
        ("step", f"{found.step:,}"),
        ("parameters", f"{sum(leaf.size for leaf in leaves.values()):,}"),
        ("conditioning", conditioning),
    ]
