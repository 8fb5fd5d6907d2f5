"""Where arrays live: a mesh of devices with a `data` and an `fsdp` axis.

A batch is cut over both axes. Parameters, their average and the optimiser's state are cut
over `fsdp` and copied over `data`; XLA inserts the communication. Positions of noise levels
and keys are drawn for the whole batch, so what is computed does not depend on the mesh.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vdm.run.config import DevicesConfig
from vdm.run.errors import UserError

AXES = ("data", "fsdp")


def start_processes(coordinator: str | None, num_processes: int | None, index: int | None) -> None:
    """Join this process to the others of a run, before anything is computed.

    Without arguments JAX finds the others itself (SLURM, Kubernetes, TPU pods). Raises
    UserError where they are not found.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, index)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot join the other processes: {str(error).splitlines()[0]}; give --coordinator="
            "HOST:PORT, --num_processes and --process_index"
        ) from error


def make(config: DevicesConfig) -> Mesh:
    """Return the mesh over all devices of all processes.

    Raises UserError unless the number of devices is a multiple of `devices.fsdp`.
    """
    count = jax.device_count()
    if count % config.fsdp:
        raise UserError(
            f"devices.fsdp is {config.fsdp}, which does not divide the {count} devices there are"
        )
    shape = (count // config.fsdp, config.fsdp)
    # Auto: with explicit axes every operation of the network would have to name its sharding.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def whole(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def of_state(mesh: Mesh, shapes: Any) -> Any:
    """Return a sharding for each array of a training state, given its shapes.

    The largest axis that `fsdp` divides is cut; where there is none, or nothing to gain, the
    array is whole on every device.
    """
    parts = mesh.shape["fsdp"]

    def sharding(leaf):
        divisible = [n if n % parts == 0 else 0 for n in leaf.shape]
        if parts == 1 or not leaf.ndim or max(divisible) == 0:
            return whole(mesh)
        axis = int(np.argmax(divisible))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree.map(sharding, shapes)


def check_batch(mesh: Mesh, batch_size: int, accumulation_steps: int) -> None:
    """Raise UserError unless every micro-batch is cut into equal parts."""
    if batch_size % (mesh.size * accumulation_steps):
        what = f"{mesh.size} devices"
        if accumulation_steps > 1:
            what += f" times {accumulation_steps} accumulation steps"
        raise UserError(f"train.batch_size is {batch_size}, not a multiple of {what}")


def batch(mesh: Mesh, size: int, take: Callable[[np.ndarray], Any]) -> Any:
    """Return a batch over all devices, each of this process's devices given its own rows.

    `take(rows)` returns those rows of the batch, on the host: arrays with a leading axis.
    """
    sharding = rows(mesh)
    places = sharding.addressable_devices_indices_map((size,))
    parts = {device: take(np.arange(size)[where]) for device, where in places.items()}

    def join(*leaves):
        shape = (size, *leaves[0].shape[1:])
        put = [jax.device_put(leaf, device) for leaf, device in zip(leaves, parts, strict=True)]
        return jax.make_array_from_single_device_arrays(shape, sharding, put)

    return jax.tree.map(join, *parts.values())
