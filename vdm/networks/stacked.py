"""A second layout of the U-Net's parameters: equal blocks as one array, for a scan over them.

The layout of a fresh network, of files and of everything that names a block has an entry for each
block: `down_block_0`, `down_block_1` and so on. Stacked, entry j of `down_block_*` is
`down_block_j`, and entry j of `up_block_*` is the block up that takes what `down_block_j` was
given. `up_block_0` takes the output of the last block down, and stays alone. The same holds for
the attention of blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")

KINDS = ("block", "attn")
SIDES = ("down", "up")


def name(side: str, kind: str) -> str:
    """Return the name of all stacked blocks of a side and a kind; no single block can have it."""
    return f"{side}_{kind}_*"


STACKED = frozenset(name(side, kind) for side in SIDES for kind in KINDS)


def names(side: str, kind: str, length: int) -> list[str]:
    """Return the names of the blocks that are stacked, in their order."""
    order = range(length) if side == "down" else range(length, 0, -1)
    return [f"{side}_{kind}_{i}" for i in order]


def stack(tree: T, join: Callable[[Sequence[Any]], Any] = jnp.stack) -> T:
    """Return a tree whose U-Net parameters are stacked, wherever they are in it.

    The tree may be the parameters, their average, the state of an optimiser, or all of a run.
    Blocks whose arrays differ in shape stay as they are. `join` makes one leaf of those of the
    blocks, which are of one shape and type.
    """

    def one(node: Any) -> Any:
        if not _is_unet(node):
            return node
        found = dict(node)
        for side in SIDES:
            for kind in KINDS:
                blocks = _blocks(node, side, kind)
                if _alike([node[block] for block in blocks]):
                    parts = [found.pop(block) for block in blocks]
                    found[name(side, kind)] = jax.tree.map(lambda *leaves: join(leaves), *parts)
        return found

    return jax.tree.map(one, tree, is_leaf=_is_unet)


def unstack(tree: T) -> T:
    """Return a tree with an entry for each block, the inverse of `stack`."""

    def one(node: Any) -> Any:
        if not _is_stacked(node):
            return node
        found = dict(node)
        for side in SIDES:
            for kind in KINDS:
                if (stacked := found.pop(name(side, kind), None)) is not None:
                    length = jax.tree.leaves(stacked)[0].shape[0]
                    for j, block in enumerate(names(side, kind, length)):
                        found[block] = jax.tree.map(lambda leaf, j=j: leaf[j], stacked)
        return found

    return jax.tree.map(one, tree, is_leaf=_is_stacked)


def num_axes(tree: T) -> T:
    """Return the number of axes of each array as a single block has it, stacked or not."""

    def of(path: Sequence[Any], leaf: Any) -> int:
        return jnp.ndim(leaf) - any(getattr(entry, "key", None) in STACKED for entry in path)

    return jax.tree.map_with_path(of, tree)


def _blocks(node: Mapping[str, Any], side: str, kind: str) -> list[str]:
    """Return the names of the blocks to stack; none where there are no such blocks."""
    found = names(side, kind, sum(key.startswith("down_block_") for key in node))
    return found if all(block in node for block in found) else []


def _alike(parts: Sequence[Any]) -> bool:
    """Return whether there are blocks with arrays in them, all of the same form."""
    forms = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), part) for part in parts]
    return bool(jax.tree.leaves(parts)) and all(form == forms[0] for form in forms)


def _is_unet(node: Any) -> bool:
    return isinstance(node, Mapping) and {"down_block_0", "up_block_0"} <= node.keys()


def _is_stacked(node: Any) -> bool:
    return isinstance(node, Mapping) and not STACKED.isdisjoint(node.keys())
