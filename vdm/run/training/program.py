"""The compiled functions of a training run on its mesh: drawing the first state, and steps."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vdm.run import mesh as meshes
from vdm.run.config import Config
from vdm.run.training import division, layout as layouts
from vdm.run.training.layout import Layout
from vdm.run.training.step import Batch, Trainer, TrainState, init_state, train_step

# Chosen for steps as short as an accelerator's: the host then has this many times as long.
MOST_STEPS = 8


class Program(NamedTuple):
    """The functions of a training loop; `template` has a state's shapes and shardings in files.

    Between steps it is laid out as `layout` says, which also has the ways there and back.
    """

    template: TrainState
    init: jax.stages.Wrapped  # of a state as in files
    layout: Layout
    # From a state of the layout and the batches of a dispatch to the next one and the metrics.
    step: jax.stages.Wrapped


def steps_per_dispatch(config: Config, platform: str) -> int:
    """Return how many steps devices of a kind take in a dispatch, chosen where the config has 0.

    On a CPU one. Elsewhere as many as MOST_STEPS at most, so that all that is done every so often
    falls between two dispatches.
    """
    asked, train = config.devices.steps_per_dispatch, config.train
    if asked:
        return asked
    if platform == "cpu":
        return 1
    counts = [train.num_steps, train.log_every, train.checkpoint_every, train.sample_every]
    counts += [train.validate_every] if train.validation_examples else []
    together = math.gcd(*counts)
    return max(n for n in range(1, MOST_STEPS + 1) if together % n == 0)


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
    divided = division.of(mesh, layout.template.params)
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
        step=jax.jit(
            steps,
            donate_argnums=0,
            out_shardings=(held, meshes.whole(mesh)),
            compiler_options=_options(trainer, meshes.platform(mesh)),
        ),
    )


def _options(trainer: Trainer, platform: str) -> dict[str, str] | None:
    """Return the options that a step is compiled with for devices of a kind.

    A CPU's compiler begins all work as soon as it can, and keeps what comes of it: blocks that are
    computed again would be so at once, and spare nothing.
    """
    if platform == "cpu" and getattr(trainer.model.network, "remat", False):
        return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    return None
