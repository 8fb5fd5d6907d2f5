"""The compiled functions of a training run on its mesh: drawing the first state, and steps."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vdm.run import mesh as meshes
from vdm.run.step import Batch, Trainer, TrainState, init_state, train_step


class Program(NamedTuple):
    """What a training loop calls; `template` has the state's shapes and where they live."""

    mesh: Mesh
    template: TrainState
    init: Callable[[], TrainState]
    step: Callable[[TrainState, list[Batch]], tuple[TrainState, dict[str, jax.Array]]]


def build(trainer: Trainer, mesh: Mesh, example: Batch) -> Program:
    """Return the functions of a run; `example` is a batch of any size, for its shapes.

    `step` takes as many batches as a dispatch has steps and returns their metrics stacked.
    It is given the state's memory to write the next one into.
    """
    first = functools.partial(init_state, trainer, example)
    shapes = jax.eval_shape(first)
    where = meshes.of_state(mesh, shapes)
    template = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        where,
    )

    def steps(state: TrainState, batches: list[Batch]):
        one = functools.partial(train_step, trainer=trainer)
        if len(batches) == 1:
            state, metrics = one(state, batches[0])
            return state, jax.tree.map(lambda value: value[None], metrics)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        return jax.lax.scan(one, state, stacked)

    # Drawing parameters once is no work; compiling it with every optimisation is.
    fast = {"xla_backend_optimization_level": 0}
    return Program(
        mesh=mesh,
        template=template,
        init=jax.jit(first, out_shardings=where, compiler_options=fast),
        step=jax.jit(steps, donate_argnums=0, out_shardings=(where, meshes.whole(mesh))),
    )


def describe(program: Program, trainer: Trainer, batch: Batch) -> list[tuple[str, str]]:
    """Return what a run would take, by compiling a step and running nothing.

    `batch` is one batch, of arrays or of shapes. FLOPs and bytes are XLA's own count for one
    device and step; where a backend does not count, the line says so.
    """
    params = program.template.params
    groups = {"network": params["network"], "schedule": params["schedule"]}
    lines = [(f"parameters, {name}", f"{_count(tree):,}") for name, tree in groups.items()]
    mesh = program.mesh
    shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    kind = mesh.devices.flat[0].device_kind
    lines += [
        ("mesh", f"{shape} ({mesh.size} × {kind}, {jax.process_count()} process(es))"),
        ("state, all devices", _bytes(_size(program.template))),
        ("state, one device", _bytes(_size_here(program.template))),
    ]
    compiled = program.step.lower(program.template, [batch]).compile()
    cost: Any = compiled.cost_analysis() or {}
    for key, name in (("flops", "FLOPs a step, one device"), ("bytes accessed", "bytes moved")):
        lines.append((name, f"{cost[key]:.3e}" if key in cost else "not counted here"))
    memory: Any = compiled.memory_analysis()
    if memory is None:
        lines.append(("memory of a step, one device", "not counted here"))
    else:
        kept, work = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        text = f"{_bytes(kept + work)} ({_bytes(kept)} kept, {_bytes(work)} for the work)"
        lines.append(("memory of a step, one device", text))
    config = trainer.config.train
    total = config.batch_size * config.num_steps
    lines.append(("batch", f"{config.batch_size} examples, {total:,} in {config.num_steps:,} steps"))
    return lines


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _size(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _size_here(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    shards = (leaf.sharding.shard_shape(leaf.shape) for leaf in leaves)
    return sum(
        math.prod(shape) * leaf.dtype.itemsize
        for leaf, shape in zip(leaves, shards, strict=True)
    )


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
