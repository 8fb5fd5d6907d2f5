"""What the figures of a report draw is what was measured: lines, bands and bars of the axes."""

import dataclasses
import pathlib

import numpy as np
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

import runs
from vdm.run.data.dataset import Dataset, Examples
from vdm.run.evaluation.record import (
    Estimate,
    Estimates,
    Evaluation,
    Nfe,
    OdeResult,
    Origin,
    Profile,
    Taken,
    Terms,
    VlbResult,
)
from vdm.run.report import levels, read, results, samples, single, svg
from vdm.run.report.nearest import Nearest

ORIGIN = Origin(dataset="digits", split="test", num_dims=64, step=3)


@pytest.fixture
def axes(monkeypatch):
    """The axes of every figure by its name, in place of its SVG."""
    drawn = {}

    def draw(name, label, paint):
        drawn[name] = Figure().subplots()
        paint(drawn[name])
        return Markup("")

    monkeypatch.setattr(svg, "draw", draw)
    return drawn


def bound(num_steps, mean, sem, **more):
    terms = Terms(*(Estimate(value, None, 9) for value in (0.25, 0.5, mean - 0.75)))
    return VlbResult(Estimate(mean, sem, 9), terms, num_steps, ORIGIN, **more)


def test_a_profile_is_drawn_with_one_standard_error(axes):
    profile = Profile(
        log_snr=(-6.0, -2.0, 2.0, 6.0),
        error=Estimates((0.1, 0.4, 0.9), (0.01, 0.02, 0.05)),
        information=Estimates((0.0, 0.5, 1.5, 4.0), (0.0, 0.1, 0.1, 0.3)),
    )
    levels.profile([("test", profile)])
    error, information = axes["profile-error"], axes["profile-information"]
    np.testing.assert_allclose(error.lines[0].get_xydata(), [[-4, 0.1], [0, 0.4], [4, 0.9]])
    corners = error.collections[0].get_paths()[0].vertices
    for corner in ([-4, 0.09], [-4, 0.11], [0, 0.38], [0, 0.42], [4, 0.85], [4, 0.95]):
        assert np.isclose(corners, corner).all(1).any()
    np.testing.assert_allclose(information.lines[0].get_ydata(), [0.0, 0.5, 1.5, 4.0])


def test_a_sweep_is_drawn_with_its_errors_its_limit_and_its_law(axes):
    sweep = [
        bound(100, 2.5, 0.125, diffusion_by_steps_law=1.5),
        bound("inf", 2.0, 0.125),
        bound(10, 4.0, 0.25),
    ]
    levels.steps([("with the law", sweep), ("without", sweep[1:])])
    (bars, _) = axes["steps"].containers
    line, _, (segments,) = bars.lines
    np.testing.assert_allclose(line.get_xydata(), [[10, 4.0], [100, 2.5]])
    np.testing.assert_allclose(
        segments.get_segments(), [[[10, 3.75], [10, 4.25]], [[100, 2.375], [100, 2.625]]]
    )
    drawn = [line.get_xydata().tolist() for line in axes["steps"].lines]
    assert [[100.0, 0.25 + 0.5 + 1.5]] in drawn and [[0.0, 2.0], [1.0, 2.0]] in drawn
    legend = [text.get_text() for text in axes["steps"].get_legend().get_texts()]
    assert legend.count("by the 1/T law") == 1


def test_chains_have_a_sweep_of_their_own_up_to_the_limit(axes):
    plain = [bound(10, 4.0, 0.25), bound("inf", 2.0, 0.125)]
    clipped = [dataclasses.replace(one, clip_denoised=True) for one in plain]
    chains = [bound(5, 3.0, 0.25, chain="head"), bound(10, 2.5, 0.125, chain="head")]
    sweeps = results.sweeps_of(run_of(*plain, *chains))
    assert sweeps == [("variational bound", plain), ("head chain", [*chains, plain[1]])]
    levels.steps(sweeps)
    _, bars = axes["steps"].containers
    np.testing.assert_allclose(bars.lines[0].get_xydata(), [[5, 3.0], [10, 2.5]])
    drawn = [line.get_xydata().tolist() for line in axes["steps"].lines]
    assert drawn.count([[0.0, 2.0], [1.0, 2.0]]) == 1  # the limit of both
    # In continuous time it is the bound with the same clipping, where that was measured.
    chains[0] = dataclasses.replace(chains[0], clip_denoised=True)
    chains[1] = dataclasses.replace(chains[1], clip_denoised=True, chain="table")
    sweeps = results.sweeps_of(run_of(*plain, *clipped, *chains))
    assert sweeps[2] == ("fitted chains, x̂ clipped", [*chains, clipped[1]])
    # One finite T and no limit are no sweep.
    assert results.sweeps_of(run_of(chains[0])) == []


def test_the_levels_of_chains_are_drawn_below_the_error(axes):
    profile = Profile(
        (-6.0, 0.0, 6.0), Estimates((0.1, 0.5), None), Estimates((0.0, 1.0, 2.0), None)
    )
    levels.placed(profile, [("T = 2", np.array([-6.0, 5.0, 6.0])), ("T = 1", np.array([-6, 6]))])
    error, first, second = axes["placed"].lines
    np.testing.assert_allclose(error.get_xydata(), [[-3, 0.1], [3, 0.5]])
    np.testing.assert_array_equal(first.get_xdata(), [-6.0, 5.0, 6.0])
    np.testing.assert_array_equal(second.get_xdata(), [-6.0, 6.0])
    low, _ = axes["placed"].get_ylim()
    assert low < second.get_ydata().max() < first.get_ydata().min() < 0
    legend = [text.get_text() for text in axes["placed"].get_legend().get_texts()]
    assert legend == ["error", "T = 2", "T = 1"]


def test_the_share_of_examples_nearer_than_a_distance_grows_to_one(axes):
    found = Nearest(np.zeros(4, int), np.array([3.0, 1.0, 4.0, 2.0]))
    training = Dataset("case", "train", Examples(np.zeros((4, 2), np.uint8)), "case:1")
    drawn = samples.Neighbours(training, found, found)
    samples.distance_figure([("run", drawn)])
    line = axes["distances"].lines[0]
    expected = [[1, 0], [1, 0.25], [2, 0.5], [3, 0.75], [4, 1.0]]
    np.testing.assert_allclose(line.get_xydata(), expected)
    assert line.get_drawstyle() == "steps-post"


def test_training_is_held_against_the_bound_in_continuous_time():
    ode = OdeResult(Estimate(1.0, None, 9), None, 1, Nfe(30.0, 31.0), ORIGIN)
    found = (ode, bound(10, 4.0, None), bound("inf", 1.9, None, clip_denoised=True))
    assert single.evaluated(run_of(*found)) is None
    assert single.evaluated(run_of(*found, bound("inf", 2.0, None))) == 2.0


def run_of(*results):
    found = Evaluation(results[0], results, Taken())
    return read.Run("run", pathlib.Path(), runs.images(), None, (), found, (), (), ())
