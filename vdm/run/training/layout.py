"""How a state is laid out between two steps: equal blocks stacked where the network scans them.

Files, and everything that is not a training step, have the layout of a fresh state with an entry
for each block. A scanned U-Net is compiled once a side instead of once a block, and its state is
some hundred arrays instead of thousands, each of which costs the host time at every dispatch. A CPU
is many times slower at convolutions in a loop: there both layouts are the same one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vdm.model import Params
from vdm.networks import UNet, stacked
from vdm.networks.applied import Applied
from vdm.run import mesh as meshes
from vdm.run.config import Config
from vdm.run.training.step import Trainer, TrainState

T = TypeVar("T")


class Layout(NamedTuple):
    """The state between steps, and the ways there and back."""

    template: TrainState  # shapes and shardings
    hold: Callable[[TrainState], TrainState]  # from the layout of files
    release: Callable[[TrainState], TrainState]  # to the layout of files
    copies: bool  # whether the next step leaves alone what was released before it


def scans(config: Config, network: nn.Module | Applied, platform: str) -> bool:
    """Return whether the network is computed as a scan over its blocks on devices of a kind."""
    asked = config.devices.scan_blocks
    wanted = asked == "yes" or (asked == "auto" and platform != "cpu")
    return wanted and isinstance(network, UNet)


def of(trainer: Trainer, mesh: Mesh, template: TrainState) -> Layout:
    """Return the layout between steps of a state that has the template's shapes in files."""
    platform = meshes.platform(mesh)
    if scans(trainer.config, trainer.model.network, platform):
        held = stacked.stack(template, _join)
        hold, release = _converted(stacked.stack, held), _converted(stacked.unstack, template)
        return Layout(held, hold, release, copies=True)
    if platform == "cpu":  # where copies would only take from the steps
        return Layout(template, _as_it_is, _as_it_is, copies=False)
    return Layout(template, _as_it_is, _converted(_as_it_is, template), copies=True)


def held_params(config: Config, network: nn.Module | Applied, mesh: Mesh, params: Params) -> Params:
    """Return a trained run's parameters as its network computes with them on a mesh."""
    if not scans(config, network, meshes.platform(mesh)):
        return params
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), params
    )
    return _converted(stacked.stack, held_shapes(config, network, mesh, shapes))(params)


def held_shapes(config: Config, network: nn.Module | Applied, mesh: Mesh, shapes: Params) -> Params:
    """Return the shapes and shardings of what `held_params` returns, from those of files."""
    return stacked.stack(shapes, _join) if scans(config, network, meshes.platform(mesh)) else shapes


def stepping(trainer: Trainer, layout: Layout) -> Trainer:
    """Return the trainer whose steps take states of a layout.

    AdamW treats every number alike, and decides by a block's own axes which of them decay. Of
    another optimiser nothing is known: it is given every array as a block has it.
    """
    if layout.hold is _as_it_is or trainer.config.optimizer.method == {"name": "adamw"}:
        return trainer
    inside = trainer.optimizer

    def init(params: optax.Params) -> optax.OptState:
        return stacked.stack(inside.init(stacked.unstack(params)))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        return stacked.stack(inside.update(*stacked.unstack((updates, state, params))))

    return trainer._replace(optimizer=optax.GradientTransformation(init, update))


def _as_it_is(tree: T) -> T:
    return tree


def _converted(fn: Callable[[T], T], template: T) -> Callable[[T], T]:
    # Copies: the next step takes the memory of a state for itself, and must not take both.
    return jax.jit(
        lambda state: jax.tree.map(jnp.copy, fn(state)),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, template),
        # It moves arrays, and does that rarely.
        compiler_options={"xla_backend_optimization_level": 0},
    )


def _join(leaves: Sequence[jax.ShapeDtypeStruct]) -> jax.ShapeDtypeStruct:
    """Return the shape and the sharding of stacked arrays: their own, and no axis over blocks."""
    one = leaves[0]
    assert isinstance(one.sharding, NamedSharding)
    sharding = NamedSharding(one.sharding.mesh, PartitionSpec(None, *one.sharding.spec))
    return jax.ShapeDtypeStruct((len(leaves), *one.shape), one.dtype, sharding=sharding)
