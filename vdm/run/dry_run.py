"""The cost of a run, from a compiled step that is not run, on devices that need not be there."""

import math

import jax
import numpy as np

from vdm.run import mesh as meshes
from vdm.run.compiled import chips, cost as costs
from vdm.run.compiled.cost import Cost, DoesNotFit
from vdm.run.system.disk import num_bytes, readable
from vdm.run.training import program as programs, throughput
from vdm.run.training.parts import Parts

NOT_COUNTED = "not counted by this backend"
Lines = list[tuple[str, str]]


def describe(parts: Parts) -> Lines:
    """Return the cost of a run: a name and a value for each line.

    FLOPs are XLA's count for a whole step before it optimises; bytes moved, memory and collectives
    are those of one device of the compiled step, each instruction of a loop counted as often as it
    is run. The step is compiled for the devices of the mesh of `parts`.
    """
    _, trainer, _, mesh, example = parts
    config = trainer.config
    program = programs.build(trainer, mesh, example)
    shapes, params = program.template, program.template.params
    size, per_dispatch = (
        config.train.batch_size,
        programs.steps_per_dispatch(config, meshes.platform(mesh)),
    )
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (size, *leaf.shape[1:]), leaf.dtype, sharding=meshes.cut(mesh)
        ),
        example,
    )
    held = program.layout.template
    flops = throughput.step_flops(trainer, held, batch)
    compiled = costs.compiled(program.step.lower(held, [batch] * per_dispatch))
    lines = [
        ("mesh", _mesh(mesh)),
        ("parameters of the network", f"{_count(params['network']):,}"),
        ("parameters of the schedule", f"{_count(params['schedule']):,}"),
        ("training", f"{config.train.num_steps:,} steps of {size:,} examples"),
        ("FLOPs per step", f"{flops:.3e}"),
        ("state, all devices together", readable(num_bytes(shapes))),
        ("state, one device", readable(_bytes_of_one_device(shapes))),
    ]
    if isinstance(compiled, DoesNotFit):
        return [*lines, ("memory of a step, one device", _refusal(compiled))]
    cost = costs.of(compiled)
    kind = mesh.devices.flat[0].device_kind
    arrays = len(jax.tree.leaves(held))
    return [*lines, *_of_device(cost, kind, flops / mesh.size, per_dispatch, arrays)]


def _of_device(cost: Cost | None, kind: str, flops: float, steps: int, arrays: int) -> Lines:
    """Return the lines of a device's share of `steps` steps of so many FLOPs each."""
    if cost is None:
        return [("memory of a step, one device", NOT_COUNTED)]
    chip = chips.of(kind)
    total = f"{readable(cost.held + cost.work)} ({readable(cost.held)} state, "
    total += f"{readable(cost.work)} work space)"
    if chip is not None:
        total += f" of {readable(int(chip.memory))}"
    lines = [
        ("memory of a step, one device", total),
        ("size of the program", readable(cost.code)),
        ("arrays in the state", f"{arrays:,}"),
        ("bytes moved in a step, one device", readable(cost.moved // steps)),
    ]
    for one in cost.collectives:
        what = f"{one.times / steps:,.5g}, {readable(one.num_bytes // steps)}"
        lines.append((f"{one.kind} in a step", f"{what} ({', '.join(sorted(one.dtypes))})"))
    if not cost.collectives:
        lines.append(("collectives in a step", "none"))
    if chip is None:
        return lines
    seconds = costs.best_seconds(flops, cost.moved / steps, chip)
    limit = "arithmetic" if seconds == flops / chip.flops else "memory"
    bound = flops / chip.flops / seconds
    lines.append(("a step takes at least", f"{1e3 * seconds:.3g} ms, by its {limit}"))
    lines.append(("share of the peak, at most", f"{bound:.0%} (MFU, communication not counted)"))
    if cost.seconds is not None:
        own = cost.seconds / steps
        share = f"{1e3 * own:.3g} ms: {flops / chip.flops / own:.0%}"
        lines.append(("a step by the compiler's model", share))
    return lines


def _refusal(refused: DoesNotFit) -> str:
    if refused.needed is None or refused.there is None:
        return "does not fit, says the compiler"
    return (
        f"does not fit: {readable(int(refused.needed))} of {readable(int(refused.there))}; see "
        "train.accumulation_steps, devices.fsdp and the network's remat"
    )


def _mesh(mesh: jax.sharding.Mesh) -> str:
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return (
        f"{axes}: {mesh.size} × {mesh.devices.flat[0].device_kind} in {jax.process_count()} "
        "process(es)"
    )


def _count(tree: object) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes_of_one_device(tree: object) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )
