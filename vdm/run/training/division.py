"""How a gradient is divided over devices: each takes its examples, collectives do the rest."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from vdm.run.mesh import AXES, platform, whole

T = TypeVar("T")

# (params, *per_example) → ((mean, aux by example), (gradient, the mean's gradient by example)).
ValueAndGrad = Callable[..., tuple[Any, Any]]


class Division(NamedTuple):
    """The mesh of a step, and for every parameter along which axis `fsdp` divides it."""

    mesh: Mesh
    params: Any  # a tree of PartitionSpec


def loops(division: Division | None) -> bool:
    """Return whether a step may have convolutions in a loop.

    XLA is dozens of times slower at them on CPUs; without a mesh nothing is known of the devices.
    """
    return division is not None and platform(division.mesh) != "cpu"


def of(mesh: Mesh, params: Any) -> Division:
    """Return the division of a step whose parameters have these shardings."""
    return Division(mesh, jax.tree.map(lambda leaf: leaf.sharding.spec, params))


def divided(
    value_and_grad: ValueAndGrad, division: Division | None, cast: Callable[[Any], Any]
) -> ValueAndGrad:
    """Return the same function of a whole batch, computed by each device for its examples.

    `cast` turns parameters into those that the function takes, in the precision that it computes
    in. They are gathered over `fsdp` once, after the cast; gradients are summed over devices once,
    in float32 at least, each device being left with the part that it holds of a parameter.
    Nothing that has examples in it is communicated.
    """
    if division is None or division.mesh.size == 1:
        return lambda params, *per_example: _finished(
            value_and_grad(cast(params), *per_example), params, None
        )
    batch = PartitionSpec(AXES)

    def of_device(params: Any, *per_example: Any) -> tuple[Any, Any]:
        gathered = jax.tree.map(_gather, cast(params), division.params)
        return _finished(value_and_grad(gathered, *per_example), params, division)

    def over_devices(params: Any, *per_example: Any) -> tuple[Any, Any]:
        return jax.shard_map(
            of_device,
            mesh=division.mesh,
            in_specs=(division.params, *(batch for _ in per_example)),
            out_specs=((PartitionSpec(), batch), (division.params, batch)),
            # Gradients are those of the device's own loss until they are summed here.
            check_vma=False,
        )(params, *per_example)

    return over_devices


def on_every_device(tree: T, division: Division | None) -> T:
    """Return the same arrays, whole on every device."""
    if division is None or division.mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, whole(division.mesh))


def _finished(result: tuple[Any, Any], params: Any, division: Division | None) -> tuple[Any, Any]:
    """Return a device's results as those of the whole batch, gradients in the parameters' dtype."""
    (mean, aux), (gradient, by_example) = result
    if division is not None:
        size = division.mesh.size
        gradient = jax.tree.map(lambda g, spec: _reduce(g, spec) / size, gradient, division.params)
        # An example's share is of the mean over the whole batch.
        by_example = jax.tree.map(lambda leaf: leaf / size, by_example)
        mean = jax.lax.pmean(mean, AXES)
    gradient = jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, params)
    return (mean, aux), (gradient, by_example)


def _axis(spec: PartitionSpec) -> int | None:
    return next((axis for axis, name in enumerate(spec) if name == "fsdp"), None)


def _gather(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
    axis = _axis(spec)
    return leaf if axis is None else jax.lax.all_gather(leaf, "fsdp", axis=axis, tiled=True)


def _reduce(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    # A barrier: the compiler would sum first, in the narrow type, and convert the sum.
    axis, leaf = _axis(spec), jax.lax.optimization_barrier(wide)
    if axis is None:
        return jax.lax.psum(leaf, AXES)
    part = jax.lax.psum_scatter(leaf, "fsdp", scatter_dimension=axis, tiled=True)
    return jax.lax.psum(part, "data")
