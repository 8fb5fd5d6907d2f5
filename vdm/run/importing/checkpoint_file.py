"""What a checkpoint file of the official code holds, read without ever unpickling anything."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.serialization
import numpy as np

from vdm import interop
from vdm.run.errors import UserError
from vdm.run.system.files import check_is_file

PICKLE = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


class Checkpoint(NamedTuple):
    """What is taken from a checkpoint; the two trees are the official ones."""

    step: int
    params: Mapping[str, Any]
    ema: Mapping[str, Any]


def read(path: pathlib.Path) -> Checkpoint:
    """Return what a checkpoint or a bare parameter tree holds; never unpickles anything.

    Raises UserError for anything but a flax msgpack of {step, params, ema_params, opt_state}, of
    {params} or of {gamma, score_model}.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: expected a file in it, such as {_newest(path)}")
    check_is_file(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if content.startswith(PICKLE):
        raise UserError(f"{path} is a pickle, which could run any code: expected a flax msgpack")
    try:
        tree = flax.serialization.msgpack_restore(content)
    # For a damaged or foreign file the decoder raises errors of many types.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"cannot read {path} as a flax msgpack; it is damaged or has another format: {reason}"
        ) from error
    if not isinstance(tree, Mapping) or not {"params", "score_model"} & tree.keys():
        got = type(tree).__name__
        if isinstance(tree, Mapping):
            got = ", ".join(map(interop.shown, sorted(map(str, tree))[:8])) or "nothing"
        raise UserError(
            f"{path} is not a checkpoint of the official code: expected step, params, ema_params "
            f"and opt_state, or gamma and score_model: got {got}"
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


def _newest(folder: pathlib.Path) -> str:
    numbers = {
        int(path.stem.removeprefix("ckpt-")): path.name
        for path in folder.glob("ckpt-*.flax")
        if path.stem.removeprefix("ckpt-").isdecimal()
    }
    return numbers[max(numbers)] if numbers else "ckpt-1.flax"
