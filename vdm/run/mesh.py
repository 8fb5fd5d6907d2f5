"""Where arrays live: a mesh of devices with a `data` and an `fsdp` axis.

A batch is divided over both axes. Parameters, their average and the optimiser's state are divided
over `fsdp` and copied over `data`; XLA inserts the communication. Positions of noise levels and
keys are drawn for the whole batch, so the result does not depend on the mesh.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vdm.run.config import Config, DevicesConfig
from vdm.run.errors import UserError

T = TypeVar("T")

AXES = ("data", "fsdp")
MIN_CUT = 4096


def for_training(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh over all devices of all processes, or over the given ones.

    Raises UserError unless the number of devices is a multiple of `devices.fsdp`, and the batch
    size a multiple of the number of devices times that of its micro-batches.
    """
    mesh = make(config.devices, devices)
    parts = config.train.accumulation_steps
    if config.train.batch_size % (mesh.size * parts):
        what = f"{mesh.size} devices" + (f" times {parts} accumulation steps" * (parts > 1))
        raise UserError(f"train.batch_size is {config.train.batch_size}, not a multiple of {what}")
    return mesh


def for_results(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh to evaluate and sample on, whatever devices the run was trained on.

    Parameters are divided as in training, as far as the number of devices allows.
    """
    count = jax.device_count() if devices is None else len(devices)
    return make(DevicesConfig(fsdp=math.gcd(config.devices.fsdp, count)), devices)


def make(config: DevicesConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh over the devices, all of every process by default.

    Raises UserError where `fsdp` does not divide their number.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if count % config.fsdp:
        raise UserError(
            f"devices.fsdp is {config.fsdp}, which does not divide the number of devices, {count}"
        )
    shape = (count // config.fsdp, config.fsdp)
    # Auto: with explicit axes every operation of the network would have to name its sharding.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def platform(mesh: Mesh) -> str:
    """Return the kind of the mesh's devices: cpu, gpu or tpu."""
    return mesh.devices.flat[0].platform


def whole(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def cut(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def under(mesh: Mesh) -> AbstractContextManager[object]:
    """Trace for the devices of a mesh: what depends on how a batch is cut can ask for it."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def of_state(mesh: Mesh, shapes: T) -> T:
    """Return the shapes of a tree of arrays, each with its sharding.

    The largest axis that `fsdp` divides is divided; where there is none, or nothing to gain, the
    array is whole on every device. There is nothing to gain with fewer than `MIN_CUT` numbers: to
    gather them takes longer than they are worth.
    """
    parts = mesh.shape["fsdp"]

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        divisible = [n if n % parts == 0 else 0 for n in leaf.shape]
        sharding = whole(mesh)
        if parts > 1 and any(divisible) and math.prod(leaf.shape) >= MIN_CUT:
            axis = int(np.argmax(divisible))
            sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, shapes)


def padded(mesh: Mesh, size: int) -> int:
    """Return the smallest batch size from `size` on that divides into equal parts."""
    return -(-size // mesh.size) * mesh.size


def rows_here(mesh: Mesh, size: int) -> np.ndarray:
    """Return which rows of a batch this process has to provide, in increasing order."""
    places = cut(mesh).addressable_devices_indices_map((size,))
    return np.unique(np.concatenate([np.arange(size)[where] for where in places.values()]))


def put(mesh: Mesh, size: int, rows: np.ndarray, here: T) -> T:
    """Return a batch over all devices, given the rows of `rows_here` as arrays on the host."""
    sharding = cut(mesh)

    def place(leaf: np.ndarray) -> jax.Array:
        if leaf.shape[0] != len(rows):
            raise ValueError(f"this process must provide {len(rows)} rows: got {leaf.shape[0]}")

        def of_device(where: tuple[slice, ...] | None) -> np.ndarray:
            assert where is not None
            return leaf[np.searchsorted(rows, np.arange(size)[where[0]])]

        return jax.make_array_from_callback((size, *leaf.shape[1:]), sharding, of_device)

    return jax.tree.map(place, here)
