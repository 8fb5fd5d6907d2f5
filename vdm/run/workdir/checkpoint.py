"""Checkpoints of a training state, by orbax, written in the background and then renamed.

A checkpoint holds a whole state, a NamedTuple with the step among its fields: of a training the
parameters, their average, the optimiser's state, the law state, the step and the number of
roll-backs. Noise and batches follow from the seed and the step, so there is no state of a generator
or of a data set to keep, and the config is in the workdir already.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

import chex
import jax
import orbax.checkpoint as ocp

from vdm.run.errors import UserError
from vdm.run.system import processes
from vdm.run.system.progress import say
from vdm.run.workdir import unreadable
from vdm.run.workdir.checksum import checksum
from vdm.run.workdir.quiet import after_a_failed_read, quiet

STATE = "state"
# In files the fields keep the names of the first release.
IN_FILES = {"law_state": "levels"}


@runtime_checkable
class State(Protocol):
    """A NamedTuple of trees of arrays, one of them the step."""

    @property
    def step(self) -> jax.Array:
        """The number of steps taken."""
        ...

    def _asdict(self) -> dict[str, Any]: ...


S = TypeVar("S", bound=State)


def folder_of(workdir: pathlib.Path, *, best: bool = False) -> pathlib.Path:
    """Return where the checkpoints of a workdir are, or the one that was best in validation."""
    # orbax takes no relative path
    return (workdir / ("checkpoints_best" if best else "checkpoints")).absolute()


def latest_step(workdir: pathlib.Path) -> int:
    """Return the step of the latest checkpoint of a workdir, read or not; 0 where there is none."""
    return max((int(p.name) for p in folder_of(workdir).glob("*") if p.name.isdecimal()), default=0)


@contextlib.contextmanager
def manager(
    workdir: pathlib.Path, *, kept: int, best: bool = False
) -> Iterator[ocp.CheckpointManager]:
    """Yield orbax's manager of a workdir's checkpoints; leaving waits for a save in progress.

    Raises UserError where the last of them could not be written.
    """
    folder = folder_of(workdir, best=best)
    options = ocp.CheckpointManagerOptions(max_to_keep=kept, cleanup_tmp_directories=True)
    with quiet():
        checkpoints = ocp.CheckpointManager(folder, options=options)
        try:
            yield checkpoints
        except BaseException:
            # Report the error of the block, not what it caused in the save.
            with contextlib.suppress(Exception):
                checkpoints.close()
            raise
        with _as_write_error(folder):
            checkpoints.close()


def save(checkpoints: ocp.CheckpointManager, state: State) -> None:
    """Start saving the state under its step; returns before the files are written.

    Waits for the previous save, and raises UserError if that or this one fails.
    """
    values = {**_named(state), "checksum": checksum(state)}
    with _as_write_error(pathlib.Path(checkpoints.directory)):
        # Forced: orbax would silently leave out a step that it finds not due. Named ("state"):
        # it would decide by the latest checkpoint, damaged or not, how to read all of them.
        checkpoints.save(
            int(state.step),
            args=ocp.args.Composite(**{STATE: ocp.args.StandardSave(values)}),
            force=True,
        )


def drop_after(checkpoints: ocp.CheckpointManager, step: int) -> None:
    """Remove the checkpoints after a step."""
    with _as_write_error(pathlib.Path(checkpoints.directory)):
        checkpoints.wait_until_finished()
        for later in checkpoints.all_steps():
            if later > step:
                checkpoints.delete(later)


def resume(checkpoints: ocp.CheckpointManager, template: S) -> S | None:
    """Return the latest state that can be read, None where nothing was saved yet.

    Later checkpoints are damaged; they are moved into checkpoints_damaged/ so that their steps can
    be saved again. Raises UserError as `restore`.
    """
    folder = pathlib.Path(checkpoints.directory)
    with _as_write_error(folder):
        checkpoints.wait_until_finished()
    if checkpoints.latest_step() is None:
        return None
    state = restore(checkpoints, template)
    damaged = [step for step in checkpoints.all_steps() if step > int(state.step)]

    def set_aside() -> None:
        aside = folder.with_name(f"{folder.name}_damaged")
        for step in damaged:
            shutil.rmtree(aside / str(step), ignore_errors=True)
            aside.mkdir(exist_ok=True)
            (folder / str(step)).rename(aside / str(step))

    with _as_write_error(folder):
        processes.first_alone(set_aside)
    checkpoints.reload()
    return state


def restore(checkpoints: ocp.CheckpointManager, template: S) -> S:
    """Return the latest state that can be read, with the template's shapes and shardings.

    It may have been saved from other devices, of another number of processes. Prints to stderr
    which damaged checkpoints it skipped. Raises UserError when there is none, or none that can be
    read.
    """
    steps = sorted(checkpoints.all_steps(), reverse=True)
    if not steps:
        raise _no_checkpoint(pathlib.Path(checkpoints.directory).parent)
    errors: list[UserError] = []
    for step in steps:
        try:
            state = read(checkpoints, step, template)
        except UserError as error:
            errors.append(error)
            continue
        for passed_over in errors:
            say(f"{passed_over}; using the checkpoint of step {step} instead")
        return state
    raise UserError(
        f"{errors[0]}; there is no other that can be read: put back a copy of the run, or train it "
        "again into another --workdir"
    ) from errors[0]


def read(checkpoints: ocp.CheckpointManager, step: int, template: S) -> S:
    """Return the state saved under a step, laid out like the template; see `restore`."""
    whole = template.step.sharding
    checksum_shape = jax.ShapeDtypeStruct((), "uint32", sharding=whole)
    target = {**_named(template), "checksum": checksum_shape}
    problem: Exception | None = None
    folder = pathlib.Path(checkpoints.directory) / str(step)
    try:
        # Not by the manager, whose processes would wait for one that has failed.
        args = ocp.args.StandardRestore(target)
        values = ocp.StandardCheckpointHandler().restore(folder / STATE, args=args)
        chex.assert_trees_all_equal_shapes_and_dtypes(values, target)
    # For a damaged file orbax and tensorstore raise errors of several types.
    except Exception as error:
        after_a_failed_read()
        problem = error
    # Every process reads a part, and all resume from the same checkpoint.
    if processes.all_agree(problem is None):
        written = int(values.pop("checksum"))
        state = type(template)(*(values[name] for name in _named(template)))
        found = "is damaged: its checksum does not match"
        if written == int(checksum(state)):
            if int(state.step) == step:
                return state
            found = f"is not in its place: it holds step {int(state.step)}; was its folder renamed?"
    elif problem is None:
        found = "could not be read by another process"
    else:
        found = unreadable.reason(folder / STATE, target)
    raise UserError(f"the checkpoint {folder} {found}") from problem


def load(workdir: pathlib.Path, template: S, *, best: bool = False) -> S:
    """Return the latest state of a workdir without writing to it; raises UserError as `restore`.

    With `best` it is the one that was best in validation, once there is one.
    """
    folder = folder_of(workdir, best=best)
    if best and not any(path.name.isdigit() for path in folder.glob("*")):
        folder = folder_of(workdir)
    if not folder.is_dir():
        raise _no_checkpoint(workdir)
    with quiet():
        # Quiet, since orbax logs the options that this one implies.
        options = ocp.CheckpointManagerOptions(read_only=True)
        with ocp.CheckpointManager(folder, options=options) as checkpoints:
            return restore(checkpoints, template)


def _named(state: State) -> dict[str, Any]:
    """Return the fields of a state by their names in files."""
    return {IN_FILES.get(name, name): value for name, value in state._asdict().items()}


def _no_checkpoint(workdir: pathlib.Path) -> UserError:
    return UserError(f"{workdir} holds no checkpoint: train first with `vdm train`")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [repr(error)]
    return lines[0][:200]


@contextlib.contextmanager
def _as_write_error(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    # As above: for a full disk the writing library may raise any type.
    except Exception as error:
        raise UserError(f"cannot write a checkpoint into {folder}: {_first_line(error)}") from error
