"""Checkpoints of a training state, by orbax: written beside, then renamed, in the background."""

import pathlib

import chex
import jax
import orbax.checkpoint as ocp

from vdm.run.errors import UserError
from vdm.run.step import TrainState


def manager(workdir: pathlib.Path, *, kept: int) -> ocp.CheckpointManager:
    """Return orbax's manager of a workdir's checkpoints; use it as a context manager.

    Leaving the context waits for a save in progress.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=kept, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(_folder(workdir), options=options)


def save(checkpoints: ocp.CheckpointManager, state: TrainState) -> None:
    """Start saving the state under its step; returns before the files are written."""
    checkpoints.save(int(state.step), args=ocp.args.StandardSave(state._asdict()))


def restore(checkpoints: ocp.CheckpointManager, template: TrainState) -> TrainState:
    """Return the latest state, with the template's shapes, where the template says.

    It may have been saved on another number of devices.

    Raises UserError when there is none or when it cannot be read.
    """
    step = checkpoints.latest_step()
    folder = pathlib.Path(checkpoints.directory)
    if step is None:
        raise UserError(f"{folder.parent} holds no checkpoint: train first with `vdm train`")
    target = template._asdict()
    try:
        values = checkpoints.restore(step, args=ocp.args.StandardRestore(target))
        chex.assert_trees_all_equal_shapes_and_dtypes(values, target)
    # What orbax and tensorstore raise for a damaged file is not of one type.
    except Exception as error:
        lines = str(error).strip().splitlines() or [repr(error)]
        raise UserError(
            f"the checkpoint {folder / str(step)} is damaged or of another model; remove its "
            f"folder to go on from the one before: {lines[0][:200]}"
        ) from error
    return TrainState(**values)


def load(workdir: pathlib.Path, template: TrainState) -> TrainState:
    """Return the latest state of a workdir without writing to it; raises UserError as `restore`."""
    folder = _folder(workdir)
    if not folder.is_dir():
        raise UserError(f"{workdir} holds no checkpoint: train first with `vdm train`")
    options = ocp.CheckpointManagerOptions(create=False)
    with ocp.CheckpointManager(folder, options=options) as checkpoints:
        return restore(checkpoints, template)


def _folder(workdir: pathlib.Path) -> pathlib.Path:
    return (workdir / "checkpoints").absolute()  # orbax takes no relative path
