"""How a profile depends on the number of steps and of paths: a gap that moves with θ shows here."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from vdm import condition as conditions
from vdm.condition import Condition
from vdm.dequantisation import importance_weighted
from vdm.few_steps.chain import Chain
from vdm.inference.bound import Data, bounds, check, check_samples, in_batches, numbered
from vdm.inference.grid import of_sets
from vdm.model import VDM, Params
from vdm.ode.options import check_count


class Dependence(NamedTuple):
    """Profiles of the same examples by several bounds, one in a row, in nats.

    `bound` names the rows: "T=10", "T=inf", and "K=16" for the importance bound of 16 paths of a
    chain. `excess` [rows, n, m] is −VLB(x|θ_j) less its own row's minimum, `excess_sem` its paired
    standard error, and `best` [rows, n] the condition of the minimum.
    """

    bound: tuple[str, ...]
    excess: Float[Array, " rows n m"]
    excess_sem: Float[Array, " rows n m"]
    best: Int[Array, " rows n"]


def dependence(
    model: VDM,
    params: Params,
    x: Data,
    conds: Condition,
    key: Key[Array, "..."],
    *,
    num_steps: tuple[int | None, ...] = (10, 50, None),
    num_samples: int = 128,
    num_sets: int = 8,
    chain: Chain | None = None,
    num_paths: tuple[int, ...] = (1, 16),
    batch_size: int = 256,
) -> Dependence:
    """Return how −VLB(x|θ) rises from its minimum over θ, for several numbers of steps and paths.

    A gap between the bound and log p(x|θ) that is the same for all θ is nothing to a posterior; one
    that moves with θ bends it. Profiles that agree between T and ∞ say that the steps do not. With
    a `chain` there is a row for each K of `num_paths`: the importance-weighted bound of K paths
    (`VDM.path_weights`; Burda et al. 2016), tighter for the chain's own likelihood the larger K is,
    from num_sets · max(num_paths) paths that all rows share. What is common to all rows, as the
    error of a network that does not know a part of the θ, shows in none of them.

    x, conds, key and errors are those of `profile`, all rows with the same noise. Raises
    ValueError for no row, for num_steps or num_paths that are not whole numbers of at least 1.
    """
    num_levels = check_samples(num_samples, num_sets, 2, batch_size)
    x, keys, conds = check(model, x, key, conds)
    num_paths = () if chain is None else num_paths
    for steps in num_steps:
        if steps is not None:
            check_count("num_steps", steps)
    for paths in num_paths:
        check_count("num_paths", paths)
    if not num_steps and not num_paths:
        raise ValueError("expected a number of steps, or a chain and a number of paths: got none")
    names = [f"T={'inf' if steps is None else steps}" for steps in num_steps]
    names += [f"K={paths}" for paths in num_paths]
    sets = [
        bounds(
            model,
            params,
            keys,
            x,
            conds,
            steps,
            None,
            num_sets=num_sets,
            num_levels=num_levels,
            batch_size=batch_size,
        )
        for steps in num_steps
    ]
    if num_paths:
        weights = _path_weights(
            params,
            keys,
            x,
            conds,
            chain,
            model=model,
            num=num_sets * max(num_paths),
            batch_size=batch_size,
        )
        sets += [_by_paths(weights, paths) for paths in num_paths]
    rows = [of_sets(each, None) for each in sets]
    return Dependence(
        tuple(names),
        jnp.stack([row.excess for row in rows]),
        jnp.stack([row.excess_sem for row in rows]),
        jnp.stack([row.reference for row in rows]),
    )


@functools.partial(jax.jit, static_argnames=("model", "num", "batch_size"))
def _path_weights(
    params: Params,
    keys: Key[Array, " n"],
    x: Num[Array, " n *d"],
    conds: Condition,
    chain: Chain,
    *,
    model: VDM,
    num: int,
    batch_size: int,
) -> Float[Array, " n num m"]:
    """Return log p − log q of `num` paths of every example, each seen by all conditions."""
    shape = (len(x), num, conditions.num_rows(conds))
    of_path = numbered(keys, num)

    def paths(row: Int[Array, " b"]) -> Float[Array, " b"]:
        i, n, j = jnp.unravel_index(row, shape)
        cond = conditions.take(conds, j)
        return model.path_weights(params, of_path[i, n], x[i], cond, chain=chain)

    return in_batches(paths, shape, max(1, batch_size // chain.num_steps))


def _by_paths(weights: Float[Array, " n num m"], num_paths: int) -> Float[Array, " n r m"]:
    """Return the negative importance bound of every K paths; those that remain are left out."""
    size, num, num_conds = weights.shape
    groups = num // num_paths
    rows = weights[:, : groups * num_paths].reshape(size, groups, num_paths, num_conds)
    by_path = jnp.moveaxis(rows, 2, 0).reshape(num_paths, -1)
    return -importance_weighted(by_path).reshape(size, groups, num_conds)
