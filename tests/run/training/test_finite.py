"""A loss that is not finite: stopped, or gone back on with other noise, never saved."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from poison import poison

import runs
from vdm.run import train
from vdm.run.errors import UserError
from vdm.run.training import finite
from vdm.run.workdir import checkpoint
from vdm.run.workdir.metrics import METRICS_FILE

pytestmark = pytest.mark.float32


def config(num_steps=6, **changed):
    settings = {"checkpoint_every": 2, "log_every": 1, "on_nan": "roll_back", **changed}
    return runs.points(num_steps=num_steps, **settings)


def steps(workdir):
    return [json.loads(line)["step"] for line in (workdir / METRICS_FILE).read_text().splitlines()]


def saved(workdir):
    with checkpoint.manager(workdir, kept=2) as checkpoints:
        return sorted(checkpoints.all_steps())


def assert_equal_bits(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_run_goes_back_to_its_checkpoint_and_on_with_other_noise(tmp_path, monkeypatch, capsys):
    undisturbed = train.train(config(), tmp_path / "undisturbed")
    poison(monkeypatch, at=4, rollbacks=1)
    state = train.train(config(), tmp_path / "run")
    assert "loss is nan at step 4: rolled back to step 2" in capsys.readouterr().err
    assert (int(state.step), int(state.rollbacks)) == (6, 1)
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    assert saved(tmp_path / "run") == [4, 6]
    leaves = zip(jax.tree.leaves(state.params), jax.tree.leaves(undisturbed.params), strict=True)
    assert any(not np.array_equal(a, b) for a, b in leaves)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))

    # A run that was interrupted, before and after the roll-back, takes the very same way.
    for num_steps in (2, 4, 6):
        parts = train.train(config(num_steps), tmp_path / "parts")
    assert_equal_bits(parts, state)


def test_without_a_checkpoint_a_run_goes_back_to_its_start(tmp_path, monkeypatch, capsys):
    poison(monkeypatch, at=1, rollbacks=2)
    state = train.train(config(2), tmp_path)
    assert int(state.rollbacks) == 2 and steps(tmp_path) == [1, 2]
    assert capsys.readouterr().err.count("loss is nan at step 1: rolled back to step 0") == 2


def test_a_run_that_stays_bad_stops_and_keeps_its_checkpoints(tmp_path, monkeypatch, capsys):
    poison(monkeypatch, at=4, rollbacks=100)
    message = rf"loss is nan at step 4: stopped after {finite.MAX_ROLLBACKS} roll-backs"
    with pytest.raises(UserError, match=message):
        train.train(config(), tmp_path)
    assert capsys.readouterr().err.count("rolled back to step 2") == finite.MAX_ROLLBACKS
    assert saved(tmp_path) == [2]


def test_stopping_is_what_happens_unless_asked_otherwise(tmp_path, monkeypatch):
    poison(monkeypatch, at=4, rollbacks=100)
    with pytest.raises(
        UserError, match="loss is nan at step 4: stopped; earlier checkpoints are kept"
    ):
        train.train(config(on_nan=runs.points().train.on_nan), tmp_path)
    assert saved(tmp_path) == [2]


def test_an_update_that_is_not_finite_is_found_before_it_is_saved():
    metrics = {"loss": np.ones(2), "gradient_norm": np.ones(2)}
    bad, good = (finite.all_finite({"w": jnp.array([1.0, end])}) for end in (jnp.inf, 1.0))
    assert finite.problem(metrics, bad, 7) == "parameters are not finite after step 7"
    assert finite.problem(metrics, None, 7) is None
    assert finite.problem(metrics, good, 7) is None
    late = {**metrics, "gradient_norm": np.array([1.0, np.inf])}
    assert finite.problem(late, None, 7) == "gradient_norm is inf at step 7"


def test_another_answer_to_nan_is_named():
    with pytest.raises(UserError, match="'roll_back'"):
        config(on_nan="rollback")
