"""Where a chain's steps are placed: costs against their integrals, grids against all grids."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from oracles import arrays, normal
from vdm import few_steps

LEVELS = np.asarray([-5.0, -3.5, -1.0, 0.2, 1.5, 3.0])
WIDTHS = np.asarray([[0.3, 1.7], [0.8, 0.1]])


def exact_variance():
    """Var[x|z] of independent Gaussian data at every level but the last, [5, 2, 2]."""
    return WIDTHS**2 / (1 + np.exp(LEVELS[:-1, None, None]) * WIDTHS**2)


def test_costs_with_the_best_v_are_logarithms():
    v = exact_variance()
    costs = few_steps.cost_matrix(LEVELS, v, v)
    for i, j in itertools.product(range(6), repeat=2):
        if j <= i:
            assert costs[i, j] == np.inf
            continue
        spread = (1 + np.exp(LEVELS[j]) * WIDTHS**2) / (1 + np.exp(LEVELS[i]) * WIDTHS**2)
        np.testing.assert_allclose(costs[i, j], 0.5 * np.log(spread).sum(), rtol=1e-9)


@pytest.mark.parametrize("shape", [(5, 2, 2), (5, 1, 2), (5, 1, 1)])
def test_costs_are_mean_divergences_of_a_step(shape):
    """Against `step_kl` of x − x̂ = √e n in every dimension, n normal, by Gauss–Hermite nodes ±1."""
    error, v = exact_variance(), arrays(0, shape) ** 2
    costs = few_steps.cost_matrix(LEVELS, error, v)
    signs = np.asarray(list(itertools.product([-1.0, 1.0], repeat=4))).reshape(16, 2, 2)
    for i, j in [(0, 1), (0, 5), (2, 4), (4, 5)]:
        eps = jnp.asarray(np.exp(0.5 * LEVELS[i]) * np.sqrt(error[i]) * signs)
        wide = jnp.asarray(np.broadcast_to(v[i], signs.shape))
        ends = (jnp.asarray(LEVELS[at]) for at in (i, j))
        each = few_steps.step_kl(eps, jnp.zeros_like(eps), wide, *ends)
        np.testing.assert_allclose(costs[i, j], np.mean(each), rtol=1e-9)


def test_costs_of_v_that_differs_between_examples():
    """½ E[log w + (1 + κ e)/w − 1] with v = a(1 + n²) and e = v n², n normal, by quadrature."""
    (n, weights), scale = normal(201), np.asarray([0.2, 0.7])
    v = scale * (1 + n**2)
    error = v * n**2
    size = len(n)
    # Examples are weighted by how often they come: the trapezoidal rule has equal cells.
    many = np.random.default_rng(0).choice(size, 40000, p=weights)
    got = few_steps.step_costs(LEVELS, 1, error[many], v[many])
    assert np.all(np.isinf(got[:2]))
    for j in range(2, 6):
        wide = 1 + (np.exp(LEVELS[j]) - np.exp(LEVELS[1])) * v
        each = 0.5 * np.sum(np.log(wide) + (1 + (wide - 1) * n**2) / wide - 1, axis=1)
        mean = weights @ each
        error_of_mean = np.sqrt(weights @ (each - mean) ** 2 / 40000)
        assert abs(got[j] - mean) < 5 * error_of_mean


@pytest.mark.parametrize("seed", range(3))
def test_the_best_steps_are_the_best_of_all(seed):
    """For N = 8 levels above the first, against every grid of T steps."""
    costs = np.random.default_rng(seed).gamma(2.0, size=(9, 9))
    costs[np.tril_indices(9)] = np.inf
    for num_steps in range(1, 9):
        between = itertools.combinations(range(1, 8), num_steps - 1)
        grids = [(0, *inner, 8) for inner in between]
        totals = [sum(costs[i, j] for i, j in itertools.pairwise(grid)) for grid in grids]
        chosen, cost = few_steps.best_steps(costs, num_steps)
        assert tuple(chosen) == grids[int(np.argmin(totals))]
        np.testing.assert_allclose(cost, min(totals), rtol=1e-12)


@pytest.mark.parametrize("num_steps", [0, 9])
def test_more_steps_than_levels(num_steps):
    costs = np.full((9, 9), np.inf)
    with pytest.raises(
        ValueError, match=f"from 1 to 8, the number of levels less one: got {num_steps}"
    ):
        few_steps.best_steps(costs, num_steps)
