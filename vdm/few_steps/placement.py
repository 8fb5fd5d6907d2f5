"""Where a chain's steps begin and end: the cheapest way through all possible steps.

The cost of a step depends on its two levels alone, and not on the steps beside it. So the best T
of them are a shortest path, found exactly by dynamic programming (Watson et al. 2021, for DDPM).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vdm.few_steps.chain import kappa
from vdm.losses import sum_dims


@jax.jit
def step_costs(
    log_snrs: Float[Array | np.ndarray, " levels"],
    start: int | Int[Array, ""],
    error: Float[Array | np.ndarray, " n *d"],
    v: Float[Array | np.ndarray, " m *d"],
) -> Float[Array, " levels"]:
    """Return what a step from one level to each of the increasing levels costs, in nats.

    It is the mean over n of ½ Σ [log(1 + κ v) + (1 + κ e)/(1 + κ v) − 1], infinite for a level that
    is not above log_snrs[start]. `error` is e = (x − x̂)² at the level `start`, and `v` what the
    step takes it for; either may be a mean over examples, n = 1, where v is the same for all.
    """
    error, v = jnp.asarray(error), jnp.asarray(v)
    at = jnp.asarray(log_snrs)[start]

    def one(log_snr: Float[Array, ""]) -> Float[Array, ""]:
        gain = kappa(at, log_snr)
        wide = 1.0 + gain * v
        each = jnp.log(wide) + gain * (error - v) / wide
        return jnp.where(log_snr > at, 0.5 * jnp.mean(sum_dims(each)), jnp.inf)

    return jax.lax.map(one, jnp.asarray(log_snrs))


def cost_matrix(
    log_snrs: Float[Array | np.ndarray, " levels"],
    error: Float[Array | np.ndarray, " steps *d"],
    v: Float[Array | np.ndarray, " steps *e"],
) -> Float[np.ndarray, " levels levels"]:
    """Return the cost L[i, j] of a step from level i to level j > i, in nats; infinite elsewhere.

    `error` is the mean of (x − x̂)² at every level but the last, and `v` what a step from there
    takes it for, of a shape that is broadcast to the error's.
    """
    error = np.asarray(error)
    shape = error.shape[1:]
    rows = [
        np.asarray(step_costs(log_snrs, i, error[i][None], np.broadcast_to(v[i], shape)[None]))
        for i in range(len(log_snrs) - 1)
    ]
    rows.append(np.full(len(log_snrs), np.inf))
    return np.stack(rows).astype(np.float64)


def best_steps(
    costs: Float[np.ndarray, " levels levels"], num_steps: int
) -> tuple[Int[np.ndarray, " chosen"], float]:
    """Return the T + 1 levels, first and last included, whose steps cost least, and what they cost.

    In O(N² T) for N levels. Raises ValueError for fewer than one step, or more than there are
    levels for.
    """
    last = len(costs) - 1
    if not 1 <= num_steps <= last:
        raise ValueError(
            f"num_steps must be from 1 to {last}, the number of levels less one: got {num_steps}"
        )
    total = costs[0]  # of one step from the first level to each
    before: list[np.ndarray] = []
    for _ in range(num_steps - 1):
        through = total[:, None] + costs
        before.append(np.argmin(through, axis=0))
        total = np.min(through, axis=0)
    chosen = [last]
    for back in reversed(before):
        chosen.append(int(back[chosen[-1]]))
    return np.asarray([0, *reversed(chosen)]), float(total[last])
