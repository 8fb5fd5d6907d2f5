"""The cost of a run, from a compiled step that is not run, on devices that need not be there."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vdm.model import Params
from vdm.networks import stacked
from vdm.run import keys, mesh as meshes, sample
from vdm.run.compiled import chips, cost as costs
from vdm.run.compiled.chips import Chip
from vdm.run.compiled.cost import Cost, DoesNotFit
from vdm.run.config import EvaluateConfig, SampleConfig
from vdm.run.evaluation import bound as bounds
from vdm.run.filling import fill
from vdm.run.film import frames
from vdm.run.system.disk import num_bytes, readable
from vdm.run.trained import Trained
from vdm.run.training import build, layout, program as programs, throughput
from vdm.run.training.parts import Parts
from vdm.run.training.step import Batch, TrainState

NOT_COUNTED = "not counted by this backend"
OF_TRAINING = "train.accumulation_steps, devices.fsdp and the network's remat"
ROW = np.zeros(1, np.int64)
Devices = Sequence[jax.Device] | None
Lines = list[tuple[str, str]]


class Step(NamedTuple):
    """A compiled training step: its work over all devices, and what one device has of it."""

    flops: float  # XLA's count for a whole step before it optimises
    arrays: int  # in the state between steps
    cost: Cost | DoesNotFit | None  # of a whole dispatch; None where the backend does not say


def lowered(parts: Parts) -> jax.stages.Lowered:
    """Return the program of a dispatch, for the devices of the mesh of `parts`, not compiled."""
    _, trainer, _, mesh, example = parts
    program, size = programs.build(trainer, mesh, example), trainer.config.train.batch_size
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (size, *leaf.shape[1:]), leaf.dtype, sharding=meshes.cut(mesh)
        ),
        example,
    )
    return program.step.lower(program.layout.template, [batch] * steps_of(parts))


def step(parts: Parts) -> Step:
    """Return what a training step takes, compiled for the devices of the mesh of `parts`."""
    compiled = costs.compiled(lowered(parts))
    cost = compiled if isinstance(compiled, DoesNotFit) else costs.of(compiled)
    held = held_template(parts)
    flops = throughput.step_flops(parts.trainer, held, parts.example)
    return Step(flops, len(jax.tree.leaves(held)), cost)


def held_template(parts: Parts) -> TrainState:
    """Return the shapes and shardings of the state between two steps."""
    template = programs.template(parts.trainer, parts.mesh, parts.example)
    return layout.of(parts.trainer, parts.mesh, template).template


def steps_of(parts: Parts) -> int:
    """Return how many steps a dispatch has."""
    return programs.steps_per_dispatch(parts.trainer.config, meshes.platform(parts.mesh))


def describe(parts: Parts) -> Lines:
    """Return the cost of a run: a name and a value for each line.

    FLOPs are XLA's count for a whole step before it optimises; bytes moved, memory and collectives
    are those of one device of the compiled step, each instruction of a loop counted as often as it
    is run. The step is compiled for the devices of the mesh of `parts`.
    """
    _, trainer, _, mesh, example = parts
    config, shapes = trainer.config, programs.template(trainer, mesh, example)
    found = step(parts)
    lines = [
        ("mesh", _mesh(mesh)),
        ("parameters of the network", f"{_count(shapes.params['network']):,}"),
        ("parameters of the schedule", f"{_count(shapes.params['schedule']):,}"),
        *_of_the_number(shapes.params),
        ("training", f"{config.train.num_steps:,} steps of {config.train.batch_size:,} examples"),
        ("FLOPs per step", f"{found.flops:.3e}"),
        ("state, all devices together", readable(num_bytes(shapes))),
        ("state, one device", readable(_bytes_of_one_device(shapes))),
        ("arrays in the state", f"{found.arrays:,}"),
    ]
    if isinstance(found.cost, DoesNotFit):
        return [*lines, ("memory of a step, one device", _refusal(found.cost, OF_TRAINING))]
    chip = chips.of(mesh.devices.flat[0].device_kind)
    return [*lines, *_of_device(found.cost, chip, found.flops / mesh.size, steps_of(parts))]


def of_evaluation(run: Trained, settings: EvaluateConfig, devices: Devices = None) -> Lines:
    """Return the cost of a call of the variational bound, of settings.batch_size noise levels.

    It is compiled for the `devices`, by default those of the run, and not run.
    """
    there = _placed(run, devices)
    size = meshes.padded(there.mesh, settings.batch_size)
    fn = bounds.row_fn(there, settings, clip_denoised=settings.clip_denoised)
    args = _rows(there, size, (ROW, ROW, build.blank(run.model, run.shape)))
    lowered = fn.lower(bounds.state(there, None, keys.data(settings.seed)), *args)
    return _of_call(there, lowered, size, f"{size:,} noise levels of examples", settings.precision)


def of_sampling(run: Trained, settings: SampleConfig, devices: Devices = None) -> Lines:
    """Return the cost of a call of the sampler, of settings.batch_size samples; as above."""
    there = _placed(run, devices)
    size = meshes.padded(there.mesh, settings.batch_size)
    lowered = sample.lowered(there, settings, size, *_rows(there, size, (ROW,)))
    what = f"{size:,} samples by {settings.num_steps:,} steps of {settings.sampler}"
    return _of_call(there, lowered, size, what, settings.precision)


def of_filling(
    run: Trained, settings: SampleConfig, resample: int, devices: Devices = None
) -> Lines:
    """Return the cost of a call that fills in settings.batch_size examples; as above."""
    there = _placed(run, devices)
    size = meshes.padded(there.mesh, settings.batch_size)
    lowered = fill.lowered(there, settings, resample, _rows(there, size, fill.rows(there)))
    what = f"{size:,} partly known samples by {settings.num_steps:,} × {resample:,} steps of "
    return _of_call(there, lowered, size, what + settings.sampler, settings.precision)


def of_film(run: Trained, settings: SampleConfig, columns: int, devices: Devices = None) -> Lines:
    """Return the cost of a call that draws settings.batch_size samples with their way; as above."""
    there = _placed(run, devices)
    size = meshes.padded(there.mesh, settings.batch_size)
    lowered = frames.lowered(there, settings, columns, size, _rows(there, size, (ROW,)))
    what = f"{size:,} samples by {settings.num_steps:,} steps of {settings.sampler}, "
    return _of_call(there, lowered, size, f"{what}{columns} shown", settings.precision)


def _placed(run: Trained, devices: Devices) -> Trained:
    """Return the run with shapes for parameters, on the mesh of the devices."""
    mesh = run.mesh if devices is None else meshes.for_results(run.config, devices)
    shapes = meshes.of_state(
        mesh,
        jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), stacked.unstack(run.params)),
    )
    held = layout.held_shapes(run.config, run.model.network, mesh, shapes)
    return run._replace(mesh=mesh, params=held)


def _rows(run: Trained, size: int, first: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the shapes of a batch: of `first`, without or with an axis of one, and conditions."""
    cond = run.condition.of_samples(np.arange(1))
    own = meshes.cut(run.mesh)

    def of(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
        return jax.ShapeDtypeStruct((size, *np.shape(leaf)[1:]), dtype, sharding=own)

    return jax.tree.map(of, (*first, cond))


def _of_call(
    run: Trained, lowered: jax.stages.Lowered, size: int, what: str, precision: str
) -> Lines:
    found = costs.compiled(lowered)
    example = Batch(build.blank(run.model, run.shape), run.condition.of_samples(np.arange(1)))
    once = throughput.network_flops(run.model, run.params, example, size)
    lines = [
        ("mesh", _mesh(run.mesh)),
        ("a call", what),
        ("FLOPs of the network, once", f"{once:.3e}"),
        ("precision of float32", precision),
    ]
    if isinstance(found, DoesNotFit):
        return [*lines, ("memory of a call, one device", _refusal(found, "the batch_size"))]
    chip = chips.of(run.mesh.devices.flat[0].device_kind)
    return [*lines, *_of_device(costs.of(found), chip, None, 1, "call")]


def _of_device(
    cost: Cost | None, chip: Chip | None, flops: float | None, steps: int, unit: str = "step"
) -> Lines:
    """Return the lines of a device's share of `steps` steps of so many FLOPs each, where known."""
    if cost is None:
        return [(f"memory of a {unit}, one device", NOT_COUNTED)]
    total = f"{readable(cost.held + cost.work)} ({readable(cost.held)} state, "
    total += f"{readable(cost.work)} work space)"
    if chip is not None:
        total += f" of {readable(int(chip.memory))}"
    lines = [
        (f"memory of a {unit}, one device", total),
        ("size of the program", readable(cost.code)),
        (f"bytes moved in a {unit}, one device", readable(cost.moved // steps)),
    ]
    for one in cost.collectives:
        what = f"{one.times / steps:,.5g}, {readable(one.num_bytes // steps)}"
        lines.append((f"{one.kind} in a {unit}", f"{what} ({', '.join(sorted(one.dtypes))})"))
    if not cost.collectives:
        lines.append((f"collectives in a {unit}", "none"))
    if chip is None or flops is None:
        return lines
    seconds = costs.best_seconds(flops, cost.moved / steps, chip)
    limit = "arithmetic" if seconds == flops / chip.flops else "memory"
    bound = flops / chip.flops / seconds
    lines.append((f"a {unit} takes at least", f"{1e3 * seconds:.3g} ms, by its {limit}"))
    lines.append(("share of the peak, at most", f"{bound:.0%} (MFU, communication not counted)"))
    if cost.seconds is not None:
        own = cost.seconds / steps
        share = f"{1e3 * own:.3g} ms: {flops / chip.flops / own:.0%}"
        lines.append((f"a {unit} by the compiler's model", share))
    return lines


def _of_the_number(params: Params) -> Lines:
    """Return a line on the network of the number of points, where there is one."""
    if "number_law" not in params:
        return []
    return [
        ("parameters of the network of the number of points", f"{_count(params['number_law']):,}")
    ]


def _refusal(refused: DoesNotFit, cure: str) -> str:
    if refused.needed is None or refused.there is None:
        return f"does not fit, says the compiler; see {cure}"
    return (
        f"does not fit: {readable(int(refused.needed))} of {readable(int(refused.there))}; "
        f"see {cure}"
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
