"""The profile of a bound over λ, against integrals in closed form."""

import itertools

import numpy as np
import pytest

from oracles import (
    entropy,
    gaussian_diffusion,
    gaussian_mmse,
    mutual_information,
    skewed_probs,
    table,
)
from vdm.run.evaluation import profile
from vdm.run.evaluation.record import Estimates, Profile

TOP, BOTTOM = 5.0, -4.0
WIDTHS = np.array([0.3, 1.7, 0.8])  # standard deviations of independent dimensions


def rows(n, per_example, power):
    """Rows of the bound of Gaussian data with its exact denoiser, in bits per dimension.

    λ is drawn with a density ∝ 1, or (power 2) more often near the top.
    """
    rng = np.random.default_rng(0)
    u = (rng.permuted(np.tile(np.arange(per_example), (n, 1)), axis=1) + rng.random((n, 1))) / (
        per_example
    )
    log_snr = BOTTOM + (TOP - BOTTOM) * u ** (1 / power)
    density = power * ((log_snr - BOTTOM) / (TOP - BOTTOM)) ** (power - 1) / (TOP - BOTTOM)
    error = sum(np.asarray(gaussian_mmse(width, log_snr)) for width in WIDTHS)
    noise = rng.gamma(2.0, 0.5, error.shape)  # of mean 1
    return 0.5 * error * noise / density / (3 * np.log(2)), log_snr


@pytest.mark.parametrize("power", [1, 2])
def test_intervals_hold_their_share_of_the_integral(power):
    found = profile.profile(*rows(3001, 24, power), log_snr_max=TOP, log_snr_min=BOTTOM)
    edges = np.array(found.log_snr)
    assert len(edges) == 17 and (edges[0], edges[-1]) == (BOTTOM, TOP)
    for kind, truth in (
        (
            "information",
            [sum(gaussian_diffusion(w, top, BOTTOM) for w in WIDTHS) for top in edges],
        ),
        (
            "error",
            [
                2 * sum(gaussian_diffusion(w, b, a) for w in WIDTHS) / (b - a) * np.log(2)
                for a, b in itertools.pairwise(edges)
            ],
        ),
    ):
        expected = np.array(truth, float) / (3 * np.log(2))
        mean, sem = map(np.array, getattr(found, kind))
        assert np.all(np.abs(mean - expected) <= 5 * sem + 1e-12)
        assert np.all(sem[1:] < 0.1 * mean[1:])


def test_the_standard_error_is_that_of_the_mean():
    values = [
        profile.profile(d[None], s[None], log_snr_max=TOP, log_snr_min=BOTTOM)
        for d, s in zip(*rows(400, 24, 1), strict=True)
    ]
    assert values[0].error.sem is None
    whole = profile.profile(*rows(400, 24, 1), log_snr_max=TOP, log_snr_min=BOTTOM)
    for kind in ("error", "information"):
        mean, sem = getattr(whole, kind)
        each = np.array([getattr(value, kind).mean for value in values])
        np.testing.assert_allclose(mean, each.mean(0), rtol=1e-12)
        np.testing.assert_allclose(sem, each.std(0, ddof=1) / 20, rtol=1e-9)


def exact_curve():
    """What a profile of the exact denoiser tends to: means without noise."""
    edges = np.linspace(BOTTOM, TOP, 17)
    running = [sum(gaussian_diffusion(w, top, BOTTOM) for w in WIDTHS) for top in edges]
    running = np.array(running, float) / (3 * np.log(2))
    error = np.diff(running) * np.log(2) / (0.5 * np.diff(edges))
    return curve_of(edges, error, running)


def curve_of(edges, error, bits):
    means = (Estimates(tuple(values.tolist()), None) for values in (error, bits))
    return Profile(tuple(edges.tolist()), *means)


@pytest.mark.parametrize("num_steps", [100, 1000])
def test_the_cost_of_steps_against_their_sum(num_steps):
    grid = np.linspace(BOTTOM, TOP, num_steps + 1)  # λ at the noisier end of each step, and the top
    error = sum(np.asarray(gaussian_mmse(width, grid[:-1])) for width in WIDTHS)
    exact = 0.5 * np.sum(np.expm1(np.diff(grid)) * error) / (3 * np.log(2))
    curve = exact_curve()
    cost = exact - curve.information.mean[-1]
    predicted = profile.predicted_steps(curve, num_steps) - curve.information.mean[-1]
    # The law's remainder, and the ends' errors being means over the first and last interval.
    assert abs(predicted / cost - 1) < 0.05 + 3 / num_steps
    assert cost > 0.004


@pytest.mark.parametrize(("top", "bottom"), [(7.0, -3.0), (5.0, -9.0), (8.0, -9.0)])
def test_the_information_of_a_table_is_its_entropy(top, bottom):
    probs = skewed_probs((8,))
    edges = np.linspace(bottom, top, 17)
    running = np.array([float(mutual_information(table(probs, 8), float(e))) for e in edges])
    error = np.diff(running) / (0.5 * np.diff(edges))
    bits = (running - running[0]) / np.log(2)
    found = profile.i_mmse(curve_of(edges, error, bits), levels=8)
    truth = float(entropy(probs)) / np.log(2)
    below = running[0] / np.log(2)
    above = truth - bits[-1] - below
    assert found.between == bits[-1] and found.bpd == found.between + found.below
    # The error at the end is extrapolated from intervals of 0.6 to 1.1 in λ.
    assert abs(found.below - below) < 0.15 * below
    assert 0 < above < found.above_at_most
