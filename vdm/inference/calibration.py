"""Whether posteriors are calibrated: the rank of each simulated θ among draws of its posterior.

If θ is drawn from the prior, x from p(x|θ) and s draws from the posterior given x, the rank of θ
among them is uniform on 0..s (simulation-based calibration, Talts et al. 2018, theorem 1). A
posterior that is too narrow has too many ranks at both ends, one that is shifted too many at one.
Uniform ranks are needed and not enough: the prior itself passes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaincc
from jaxtyping import Array, Float, Int, Key

from vdm.ode.options import check_count

AnyArray = Array | np.ndarray
LEAST_EXPECTED = 5.0  # in a bin of a chi-square test, by the usual rule
MOST_BINS = 20


class Coverage(NamedTuple):
    """How often θ lay in the central credible interval of a level.

    `share` [l, c] is the share of the simulated θ inside, for each level and parameter. `nominal`
    [l] is the share to expect of calibrated posteriors, which differs from the level by at most
    1/(number of draws + 1), and `standard_error` [l] the binomial one of a share if they are.
    """

    nominal: Float[Array, " l"]
    share: Float[Array, " l c"]
    standard_error: Float[Array, " l"]


def ranks(draws: Float[AnyArray, " n s c"], theta: Float[AnyArray, " n c"]) -> Int[Array, " n c"]:
    """Return how many of s posterior draws are below each simulated θ, 0..s, for each parameter.

    Row i of `draws` is drawn from the posterior of the data simulated at theta[i]. Draws of a
    Markov chain must be thinned until they are as good as independent. A tie counts as not below: θ
    is continuous. Raises ValueError for shapes that do not fit and numbers that are not finite.
    """
    draws, theta = np.asarray(draws), np.asarray(theta)
    if draws.ndim != 3 or theta.shape != (draws.shape[0], draws.shape[2]) or 0 in draws.shape:
        raise ValueError(
            "expected draws [n, s, c] and theta [n, c], none of them empty: got shapes "
            f"{draws.shape} and {theta.shape}"
        )
    if not (np.all(np.isfinite(draws)) and np.all(np.isfinite(theta))):
        raise ValueError("expected finite draws and theta: got some that are not")
    return jnp.asarray(np.sum(draws < theta[:, None], axis=1))


def grid_draws(
    key: Key[Array, ""], weights: Float[AnyArray, " n m"], grid: Float[AnyArray, " m"], num: int
) -> Float[Array, " n num 1"]:
    """Return draws of one parameter from posterior weights on a grid, as `ranks` takes them.

    A draw is even over the cell of a grid point, between the middles to its neighbours; the first
    and the last cell are symmetric. So the prior must be the mass of these cells. Raises ValueError
    for a grid that does not increase strictly or has fewer than two points, weights of another
    length, that are negative or do not sum to 1, and num < 1.
    """
    weights, grid = jnp.asarray(weights), jnp.asarray(grid)
    check_count("num", num)
    if grid.ndim != 1 or len(grid) < 2 or not bool(jnp.all(jnp.diff(grid) > 0)):
        raise ValueError(f"a grid must be at least two points that increase strictly: got {grid}")
    if weights.ndim != 2 or weights.shape[1] != len(grid):
        raise ValueError(f"expected weights of shape [n, {len(grid)}]: got {weights.shape}")
    if not bool(jnp.all(weights >= 0) & jnp.all(jnp.abs(jnp.sum(weights, 1) - 1) < 1e-3)):
        raise ValueError("weights must not be negative, and sum to 1 for every example")
    middle = 0.5 * (grid[1:] + grid[:-1])
    edges = jnp.concatenate([2 * grid[:1] - middle[:1], middle, 2 * grid[-1:] - middle[-1:]])
    key_cell, key_place = jax.random.split(key)
    logits, shape = jnp.log(weights)[:, None], (len(weights), num)
    cell = jax.random.categorical(key_cell, logits, axis=-1, shape=shape)
    place = jax.random.uniform(key_place, shape, grid.dtype)
    return (edges[cell] + place * (edges[cell + 1] - edges[cell]))[..., None]


def uniformity(
    ranks: Int[AnyArray, " n c"], num_draws: int, *, num_bins: int | None = None
) -> Float[Array, " c"]:
    """Return the p-value of Pearson's chi-square test that ranks are uniform, for each parameter.

    χ² = Σ (count − expected)²/expected over bins of neighbouring ranks of 0..num_draws, and p is
    the share of a χ² law of one degree less than there are bins above it: small where calibration
    fails. The parameters' tests are not independent. By default there are as many bins as leave ten
    expected θ in each, at most 20. Raises ValueError for ranks that are not in 0..num_draws, and
    for bins fewer than two, more than there are ranks, or with fewer than 5 expected.
    """
    values = _checked_ranks(ranks, num_draws)
    if num_bins is None:
        num_bins = max(2, min(MOST_BINS, num_draws + 1, len(values) // 10))
    check_count("num_bins", num_bins)
    if not 2 <= num_bins <= num_draws + 1:
        raise ValueError(f"num_bins must be from 2 to the {num_draws + 1} ranks: got {num_bins}")
    # Bins may hold unequal numbers of ranks: each is expected what it holds.
    of_rank = np.arange(num_draws + 1) * num_bins // (num_draws + 1)
    expected = len(values) * np.bincount(of_rank, minlength=num_bins) / (num_draws + 1)
    if expected.min() < LEAST_EXPECTED:
        raise ValueError(
            f"a chi-square test needs {LEAST_EXPECTED:.0f} expected in a bin: got "
            f"{expected.min():.3g} for {len(values)} simulated θ in {num_bins} bins"
        )
    counts = np.stack([np.bincount(of_rank[part], minlength=num_bins) for part in values.T])
    square = np.sum((counts - expected) ** 2 / expected, axis=1)
    return gammaincc(0.5 * (num_bins - 1), jnp.asarray(0.5 * square))


def coverage(
    ranks: Int[AnyArray, " n c"], num_draws: int, levels: Float[AnyArray, " l"]
) -> Coverage:
    """Return how often θ lay inside the central credible intervals of some levels in (0, 1).

    The interval of a level L holds the ranks r with |(r + ½)/(s + 1) − ½| ≤ L/2, s = num_draws.
    Raises ValueError for ranks that are not in 0..num_draws, and for levels outside (0, 1).
    """
    values, levels = _checked_ranks(ranks, num_draws), np.asarray(levels)
    if levels.ndim != 1 or not len(levels) or not np.all((levels > 0) & (levels < 1)):
        raise ValueError(f"levels must be numbers between 0 and 1, shape [l]: got {levels}")
    # In whole numbers: |2r − s| ≤ L (s + 1), but for the rounding of L.
    most = levels * (num_draws + 1) * (1 + 1e-12)
    distance = np.abs(2 * np.arange(num_draws + 1) - num_draws)
    inside = distance[None] <= most[:, None]
    nominal = np.mean(inside, axis=1)
    share = np.mean(inside[:, values], axis=1)
    error = np.sqrt(nominal * (1 - nominal) / len(values))
    return Coverage(jnp.asarray(nominal), jnp.asarray(share), jnp.asarray(error))


def _checked_ranks(ranks: Int[AnyArray, " n c"], num_draws: int) -> Int[np.ndarray, " n c"]:
    check_count("num_draws", num_draws)
    values = np.asarray(ranks)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"ranks must be of shape [n, c] and not empty: got {values.shape}")
    if values.min() < 0 or values.max() > num_draws:
        raise ValueError(f"ranks must be in 0..{num_draws}: got {values.min()} to {values.max()}")
    return values
