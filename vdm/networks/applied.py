"""A network that is not Flax Linen's: two functions, one for parameters and one for the output."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from vdm.condition import Condition


@dataclasses.dataclass(frozen=True)
class Applied:
    """A network of two functions, to be used as a Linen module is; see `from_apply`."""

    init_fn: Callable[..., PyTree]
    apply_fn: Callable[..., Array]
    num_classes: int | None = None
    cond_dim: int | None = None
    cond_channels: int | None = None
    optional_cond: bool = False

    def init(
        self,
        key: Key[Array, ""],
        z: Float[Array, " b *d"],
        log_snr: Float[Array, " b"],
        cond: Condition | None = None,
        *,
        train: bool = False,
    ) -> dict[str, dict[str, Array]]:
        """Return {"params": ...}, the leaves of the parameters by their names."""
        del train
        return {"params": _named(self.init_fn(key, z, log_snr, cond))}

    def apply(
        self,
        variables: Mapping[str, Mapping[str, Array]],
        z: Float[Array, " b *d"],
        log_snr: Float[Array, " b"],
        cond: Condition | None = None,
        *,
        train: bool = False,
        rngs: Mapping[str, Array] | None = None,
    ) -> Array:
        """Return the output at z and λ; with `train` there is the key rngs["dropout"]."""
        # The tree of the parameters is that of a fresh one, of which nothing is computed.
        fresh = jax.eval_shape(self.init_fn, jax.random.key(0), z, log_snr, cond)
        named = variables["params"]
        leaves = [named[name] for name in _named(fresh)]
        params = jax.tree.unflatten(jax.tree.structure(fresh), leaves)
        key = None if rngs is None else rngs.get("dropout")
        return jnp.asarray(self.apply_fn(params, z, log_snr, cond, train=train, key=key))


def from_apply(
    init: Callable[..., PyTree],
    apply: Callable[..., Array],
    *,
    num_classes: int | None = None,
    cond_dim: int | None = None,
    cond_channels: int | None = None,
    optional_cond: bool = False,
) -> Applied:
    """Return a network of two functions, of Flax NNX, equinox or plain JAX.

    `init(key, z, log_snr, cond)` returns a tree of arrays, the parameters; of z [b, *d], log_snr
    [b] and cond only the shapes may matter. `apply(params, z, log_snr, cond, *, train, key)`
    returns an array of z's shape; the key, for dropout, is None unless `train`. `cond` is the class
    of each example with `num_classes`, a vector with `cond_dim`, a field with `cond_channels`, with
    several of them `vdm.condition.Conditions`, and may be None with `optional_cond`. Examples must
    not mix: in the training of `vdm train` each has a key of its own, and is given alone, by
    vmap. Two networks are equal if their functions are the same objects.
    """
    return Applied(init, apply, num_classes, cond_dim, cond_channels, optional_cond)


def _named(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
