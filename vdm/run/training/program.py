"""The compiled functions of a training run on its mesh: drawing the first state, and steps."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vdm.run import mesh as meshes
from vdm.run.training import division, layout as layouts
from vdm.run.training.layout import Layout
from vdm.run.training.step import Batch, Trainer, TrainState, init_state, train_step


class Program(NamedTuple):
    """The functions of a training loop; `template` has a state's shapes and shardings in files.

    Between steps it is laid out as `layout` says, which also has the ways there and back.
    """

    template: TrainState
    init: jax.stages.Wrapped  # of a state as in files
    layout: Layout
    # From a state of the layout and the batches of a dispatch to the next one and the metrics.
    step: jax.stages.Wrapped


def template(trainer: Trainer, mesh: Mesh, example: Batch) -> TrainState:
    """Return the shapes and shardings of a run's state; `example` is of any batch size."""
    return meshes.of_state(mesh, jax.eval_shape(functools.partial(init_state, trainer, example)))


def build(trainer: Trainer, mesh: Mesh, example: Batch) -> Program:
    """Return the functions of a run; `example` is a batch of any size, for its shapes.

    `step` takes as many batches as a dispatch has steps and returns their metrics stacked.
    The state is donated: the next one is written into its memory.
    """
    shapes = template(trainer, mesh, example)
    layout = layouts.of(trainer, mesh, shapes)
    places, held = (
        jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (shapes, layout.template)
    )
    divided = None if mesh.size == 1 else division.of(mesh, layout.template.params)
    one = functools.partial(train_step, trainer=layouts.stepping(trainer, layout), division=divided)

    def steps(
        state: TrainState, batches: Sequence[Batch]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if len(batches) == 1:
            state, metrics = one(state, batches[0])
            return state, jax.tree.map(lambda value: value[None], metrics)
        return jax.lax.scan(one, state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches))

    return Program(
        template=shapes,
        init=jax.jit(
            functools.partial(init_state, trainer, example),
            out_shardings=places,
            # Parameters are drawn once; optimising the compiled program would cost more than it
            # saves.
            compiler_options={"xla_backend_optimization_level": 0},
        ),
        layout=layout,
        step=jax.jit(steps, donate_argnums=0, out_shardings=(held, meshes.whole(mesh))),
    )
