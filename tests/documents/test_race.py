"""The race of recipes: what is held out, planned and chosen, without a run."""

import dataclasses

import numpy as np
import pytest

import documented
from vdm.run.errors import UserError


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.chdir(documented.ROOT)
    monkeypatch.syspath_prepend(documented.ROOT / "benchmarks")
    import recipe

    return recipe


def digits(recipe, row="paper@0.008"):
    return recipe.make_config(row, list(recipe.race.SETS["digits"]), 100, 0)


@pytest.mark.parametrize("on", ["validation", "test"])
def test_the_examples_held_out_are_neither_trained_on_nor_tested(recipe, on):
    found = recipe.race.splits(digits(recipe), on)
    assert (found.watched.split, len(found.training)) == (on, 1200)
    (other,) = found.last
    assert {on, other} == {"validation", "test"}
    parts = [found.training, found.watched, found.last[other]]
    rows = [{row.tobytes() for row in part.x} for part in parts]
    assert len(set.union(*rows)) > 0.99 * sum(map(len, parts))  # but for equal digits
    assert sorted(len(part) for part in parts) == [297, 300, 1200]


def test_a_large_test_split_is_thinned_evenly(recipe, monkeypatch):
    monkeypatch.setattr(recipe.race, "TEST_EXAMPLES", 50)
    whole = recipe.race.data.load(digits(recipe).data, "test")
    (thin,) = recipe.race.splits(digits(recipe)).last.values()
    at = np.linspace(0, 296, 50).round().astype(int)
    np.testing.assert_array_equal(thin.x, whole.x[at])


def test_a_run_is_planned_for_its_seconds(recipe, monkeypatch, tmp_path):
    race = recipe.race
    calls = []
    monkeypatch.setattr(race, "pace", lambda config, load: calls.append(config) or 0.05)
    for row in ("paper@0.008", "paper@0.004"):  # the pace is measured once
        config = race.planned(digits(recipe, row), 30.0, tmp_path / "pace.json", None)
    assert len(calls) == 1 and config.train.num_steps == 600
    assert config.optimizer.ema_decay == 0.5 ** (1 / 60)
    with pytest.raises(UserError, match=r"pace\.json is of another config"):
        race.planned(digits(recipe, "paper@0.008+head"), 30.0, tmp_path / "pace.json", None)


def test_the_rate_is_the_one_that_is_best_on_held_out_examples(recipe):
    bounds = {"fast@1e-3": 2.0, "fast@2e-3": 1.5, "fast@4e-3": 1.7}

    def points_of(row):
        if row not in bounds:
            raise UserError("the bound is not finite")
        return {0: [{"ema": 9.0}, {"ema": bounds[row]}]}

    rates = ["1e-3", "2e-3", "4e-3", "1"]
    assert recipe.at_best_rate("fast", rates, points_of) == "fast@2e-3"
    assert recipe.at_best_rate("fast@3e-3", rates, points_of) == "fast@3e-3"
    assert recipe.at_best_rate("fast", [], points_of) == "fast"
    with pytest.raises(UserError, match="no bound at any of the rates 1"):
        recipe.at_best_rate("fast", ["1"], points_of)
    bounds = {"ours@1e-3-head/50": 1.0}
    assert recipe.at_best_rate("ours-head/50", rates[:1], points_of) == "ours@1e-3-head/50"


def test_runs_that_are_there_are_not_repeated_and_those_of_another_config_are_refused(
    recipe, monkeypatch, tmp_path
):
    race, config = recipe.race, digits(recipe)
    made = []

    def learn(config, seeds, found):
        for seed in seeds:
            made.append(seed)
            yield [{"step": 100, "seconds": 1.0, "ema": 2.0 + seed, "raw": 3.0, "test": 2.5}]

    monkeypatch.setattr(race, "learn", learn)
    loads = []

    def measured(config, seeds):
        return race.measure("paper@0.008", config, seeds, tmp_path, lambda: loads.append(1))

    first, again = measured(config, [0, 1]), measured(config, [0, 1, 2])
    assert measured(config, [2]) == {2: again[2]} and len(loads) == 2
    assert made == [0, 1, 2] and {seed: again[seed] for seed in first} == first
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=8))
    with pytest.raises(UserError, match="is of another config"):
        measured(other, [0])


def test_a_bound_is_reached_between_the_evaluations_around_it(recipe):
    points = [
        {"step": step, "seconds": 0.1 * step, "ema": ema}
        for step, ema in ((100, 3.0), (200, 2.0), (300, 1.0))
    ]
    assert recipe.race.reached(points, 3.5) == [100, 10.0]
    np.testing.assert_allclose(recipe.race.reached(points, 1.25), [275, 27.5])
    assert recipe.race.reached(points, 0.5) is None


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_the_papers_recipe_is_the_papers_whatever_the_config_says(recipe, name):
    config = recipe.make_config("paper", list(recipe.race.SETS[name]), 100, 0)
    network = config.model.network
    assert config.optimizer.method == {"name": "adamw"} and config.model.prediction == "eps"
    assert network["residual"] and network["wiener"] == "none"
    assert config.train.batch_size == (8 if name == "cifar10" else 16)
