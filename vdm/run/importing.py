"""Other people's checkpoints as runs of ours, ready to be evaluated and sampled.

A checkpoint of the official code (google-research/vdm) is one flax msgpack of {step, params,
ema_params, opt_state}. Parameters, their average and the step are taken over; the optimiser
starts anew. What the parameters show of the model wins over the config, which gives the
rest: the data, the range of λ that the network was built for, and how to train on.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from vdm import VDM, interop
from vdm.run import config as configs, data, mesh as meshes
from vdm.run.config import Config
from vdm.run.data import condition
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError, as_user_error
from vdm.run.system import lock
from vdm.run.system.files import check_writable
from vdm.run.training import build, checks, program as programs
from vdm.run.training.step import Batch, TrainState
from vdm.run.workdir import checkpoint
from vdm.schedules.fixed import Linear
from vdm.schedules.learned import LearnedLinear
from vdm.schedules.unpinned import LearnedUnpinned

STAGING = ".importing"
# Of the config's network; everything else about it is read from the parameters.
NETWORK_KEYS = ("dropout", "num_groups", "log_snr_max", "log_snr_min", "dtype", "remat")
SCHEDULES = {
    Linear: "linear",
    LearnedLinear: "learned_linear",
    LearnedUnpinned: "learned_unpinned",
}
PICKLE = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


class Checkpoint(NamedTuple):
    """What is taken from a checkpoint; the two trees are the official ones."""

    step: int
    params: Mapping[str, Any]
    ema: Mapping[str, Any]


class Imported(NamedTuple):
    """A run that is ready to be written."""

    config: Config
    dataset: Dataset
    state: TrainState
    lines: list[tuple[str, str]]  # what was found, to be shown


def official_values() -> ml_collections.ConfigDict:
    """Return the config of the official CIFAR-10 model.

    What parameters show of a model is here too, so that a command which contradicts them hears so.
    """
    config = configs.default_values()
    config.data.name = "cifar10"
    config.model.schedule = {
        "name": "learned_linear",
        "log_snr_max": 13.3,
        "log_snr_min": -5.0,
    }
    config.model.network = {
        "name": "unet",
        "channels": 128,
        "num_blocks": 32,
        "attention": "middle",
        "fourier_exponents": (6, 7),
        "dropout": 0.1,
        "num_groups": 32,
        # The range for which the network was built is not that which the schedule has learned.
        "log_snr_max": 13.3,
        "log_snr_min": -5.0,
        "dtype": "float32",
        "remat": False,
    }
    config.model.likelihood = {"name": "discretised", "levels": 256}
    # One rate for all parameters, and nothing clipped.
    config.optimizer.update(schedule_learning_rate=2e-4, shape_learning_rate=2e-4, clip_norm=0.0)
    config.train.num_steps = 10_000_000
    config.evaluate.levels_per_example = 10  # as in experiments/cifar10.py
    return config


def read(path: pathlib.Path) -> Checkpoint:
    """Return what a checkpoint or a bare parameter tree holds; never unpickles anything.

    Raises UserError for anything but a flax msgpack of {step, params, ema_params, opt_state}, of
    {params} or of {gamma, score_model}.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: expected a file in it, such as {_newest(path)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if content.startswith(PICKLE):
        raise UserError(f"{path} is a pickle, which could run any code: expected a flax msgpack")
    try:
        tree = flax.serialization.msgpack_restore(content)
    # What a damaged or foreign file makes the decoder raise is of many types.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"cannot read {path} as a flax msgpack, it is damaged or of another kind: {reason}"
        ) from error
    if not isinstance(tree, Mapping) or not {"params", "score_model"} & tree.keys():
        got = type(tree).__name__
        if isinstance(tree, Mapping):
            got = ", ".join(map(interop.shown, sorted(map(str, tree))[:8])) or "nothing"
        raise UserError(
            f"{path} is no checkpoint of the official code: expected step, params, ema_params and "
            f"opt_state, or gamma and score_model: got {got}"
        )
    if "params" not in tree:
        return Checkpoint(0, tree, tree)
    step = tree.get("step", 0)
    steps = np.asarray(step)
    if steps.size != 1 or steps.dtype.kind not in "iu" or not 0 <= int(steps.item()) < 2**31:
        raise UserError(
            f"{path}: the step must be a whole number below 2³¹: got {interop.shown(step)}"
        )
    return Checkpoint(int(steps.item()), tree["params"], tree.get("ema_params", tree["params"]))


def prepare(path: pathlib.Path, config: Config, stated: Collection[str]) -> Imported:
    """Return the run that a checkpoint makes with a config, without writing anything.

    `stated` are the keys that the command itself set. Raises UserError where a checkpoint is not
    what it should be, where the command states what its parameters contradict, and where the
    data set is not at hand or of another kind of images.
    """
    found = read(path)
    num_groups = config.model.network.get("num_groups", 32)
    trees = {}
    for name, tree in (("params", found.params), ("ema_params", found.ema)):
        with as_user_error(f"{path} ({name})"):
            trees[name] = interop.official(tree, num_groups=num_groups, keep_conditioning=False)
    (model, params), (_, ema) = trees["params"], trees["ema_params"]
    if differs := _difference(found):
        raise UserError(f"{path}: params and ema_params are of different models: {differs}")
    config, replaced = _settle(config, model, stated)
    try:
        dataset = data.load(config.data, "train")
    except UserError as error:
        raise UserError(
            f"an imported run needs its data set, nothing was written: {error}"
        ) from error
    channels = params["network"]["conv_out"]["bias"].shape[0]
    if len(dataset.shape) != 3 or dataset.shape[-1] != channels:
        raise UserError(
            f"{path} models images [height, width, {channels}]: got {dataset.version} of shape "
            f"{list(dataset.shape)}"
        )
    trainer = build.trainer(config, dataset)
    checks.check_dropped(trainer.model.network, config)
    told = condition.build(trainer.model.network, dataset, config.data.augment)
    one = np.arange(1)
    example = Batch(dataset.take(one).x, told.of_samples(one))
    template = programs.template(trainer, meshes.for_results(config), example)
    state = TrainState(
        step=jnp.asarray(found.step),
        params=params,
        ema=ema,
        opt_state=trainer.optimizer.init(params),
        levels=trainer.objective.law.init(),
        rollbacks=jnp.asarray(0),
    )
    state = jax.tree.map(
        lambda leaf, like: jax.device_put(leaf.astype(like.dtype), like.sharding), state, template
    )
    return Imported(config, dataset, state, [*_describe(found, trainer.model, state), *replaced])


def write(run: Imported, workdir: pathlib.Path) -> None:
    """Write the run into a workdir that holds none; what is half-written is never taken for one.

    Raises UserError for a workdir that holds a run, is in use or cannot be written to.
    """
    with lock.held(workdir):
        there = [workdir / configs.CONFIG_FILE, checkpoint.folder_of(workdir)]
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
            data.keep(run.dataset, staging)
            configs.keep(run.config, staging)
            # The config last: a folder without it is no run.
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
            return f"leaf {name!r} is {ours} in the one and {theirs} in the other"
    return ""


def _newest(folder: pathlib.Path) -> str:
    numbers = {
        int(path.stem.removeprefix("ckpt-")): path.name
        for path in folder.glob("ckpt-*.flax")
        if path.stem.removeprefix("ckpt-").isdecimal()
    }
    return numbers[max(numbers)] if numbers else "ckpt-1.flax"


def _settle(
    config: Config, model: VDM, stated: Collection[str]
) -> tuple[Config, list[tuple[str, str]]]:
    """Return the config with what the parameters show in place of what it says itself.

    And which of its values have made way. Raises UserError where one of them was `stated`.
    """
    parts, network = config.model, model.network
    ends = {
        key: parts.schedule.get(key, getattr(model.schedule, key))
        for key in ("log_snr_max", "log_snr_min")
    }
    schedule: dict[str, Any] = {"name": SCHEDULES[type(model.schedule)], **ends}
    if isinstance(model.schedule, LearnedUnpinned):
        schedule["width"] = model.schedule.width
    likelihood = parts.likelihood
    if likelihood["name"] != "discretised":
        likelihood = {"name": "discretised", "levels": 256}
    kept = {key: value for key, value in parts.network.items() if key in NETWORK_KEYS}
    settled = dataclasses.replace(
        config,
        # Without the conditioning there is nothing that an augmentation could be told by.
        data=dataclasses.replace(config.data, augment="none"),
        model=dataclasses.replace(
            parts,
            schedule=schedule,
            likelihood=likelihood,
            prediction=model.prediction,
            network={
                "name": "unet",
                **kept,
                "channels": network.channels,
                "num_blocks": network.num_blocks,
                "attention": network.attention,
                "fourier_exponents": network.fourier_exponents,
            },
        ),
    )
    before, after = (configs.flatten(configs.to_dict(c)) for c in (config, settled))
    replaced = []
    for key in sorted(key for key in before if before[key] != after.get(key)):
        shown = f"{after[key]!r}" if key in after else "nothing of the kind"
        if key in stated:
            raise UserError(
                f"--config.{key}={before[key]} contradicts the checkpoint, which has {shown}"
            )
        replaced.append((key, f"{shown}, where the config has {before[key]!r}"))
    return settled, replaced


def _describe(found: Checkpoint, model: VDM, state: TrainState) -> list[tuple[str, str]]:
    network, leaves = model.network, interop.flatten(found.params)
    rows = leaves["score_model/dense0/kernel"].shape[0]
    told = "none" if rows == network.channels else "left out, which is exact where it is 0"
    high, low = np.asarray(model.log_snr(state.ema)(jnp.asarray([0.0, 1.0])))
    return [
        ("channels", str(network.channels)),
        ("blocks a side", str(network.num_blocks)),
        ("attention", network.attention),
        ("Fourier features", ", ".join(map(str, network.fourier_exponents)) or "none"),
        ("schedule", f"{SCHEDULES[type(model.schedule)]}, λ from {high:.4f} to {low:.4f}"),
        ("the network's range of λ", f"{network.log_snr_max} to {network.log_snr_min}"),
        ("step", f"{found.step:,}"),
        ("parameters", f"{sum(leaf.size for leaf in leaves.values()):,}"),
        ("conditioning", told),
    ]
