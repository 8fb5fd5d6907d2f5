"""The cost of a run, from a compiled step that is not run."""

import math

import jax
import numpy as np

from vdm.run import mesh as meshes
from vdm.run.system.disk import num_bytes, readable
from vdm.run.training import program as programs, throughput
from vdm.run.training.parts import Parts


def describe(parts: Parts) -> list[tuple[str, str]]:
    """Return the cost of a run: a name and a value for each line.

    FLOPs are XLA's count for a whole step before it optimises, bytes moved and memory its count
    for one device of the compiled step; where a backend does not count, the line says that.
    """
    _, trainer, _, mesh, example = parts
    config = trainer.config
    program = programs.build(trainer, mesh, example)
    shapes, params = program.template, program.template.params
    size = config.train.batch_size
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (size, *leaf.shape[1:]), leaf.dtype, sharding=meshes.cut(mesh)
        ),
        example,
    )
    per_dispatch = config.devices.steps_per_dispatch
    compiled = program.step.lower(shapes, [batch] * per_dispatch).compile()
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    flops = throughput.step_flops(trainer, shapes, batch)
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    devices = f"{mesh.size} × {mesh.devices.flat[0].device_kind}"
    lines = [
        ("mesh", f"{axes}: {devices} in {jax.process_count()} process(es)"),
        ("parameters of the network", f"{_count(params['network']):,}"),
        ("parameters of the schedule", f"{_count(params['schedule']):,}"),
        ("training", f"{config.train.num_steps:,} steps of {size:,} examples"),
        ("FLOPs per step", f"{flops:.3e}"),
    ]
    moved = cost.get("bytes accessed")
    # Of a loop over the steps of a dispatch, or over micro-batches, XLA counts one round.
    once = per_dispatch == 1 and config.train.accumulation_steps == 1
    count = "not counted by this backend" if moved is None or not once else readable(int(moved))
    lines.append(("bytes moved in a step, one device", count))
    lines.append(("state, all devices together", readable(num_bytes(shapes))))
    lines.append(("state, one device", readable(_bytes_of_one_device(shapes))))
    if memory is None:
        return [*lines, ("memory of a step, one device", "not counted by this backend")]
    kept, work = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    text = f"{readable(kept + work)} ({readable(kept)} state, {readable(work)} work space)"
    return [*lines, ("memory of a step, one device", text)]


def _count(tree: object) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes_of_one_device(tree: object) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )
