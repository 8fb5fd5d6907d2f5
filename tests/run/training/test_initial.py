"""A run that begins with what another one has learned: which numbers it takes, what it refuses."""

import dataclasses
import gc
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import runs
import vdm.run
from vdm.run import cli, train
from vdm.run.errors import UserError
from vdm.run.training import finite, initial

pytestmark = pytest.mark.float32


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run whose averaged parameters are not its last ones."""
    return runs.copy_of("points", tmp_path_factory.mktemp("source"))


def config(source, schedule=None, rate=1e-12, model=None, **changed):
    """A run of one step that moves nothing, so that its parameters are those it begins with."""
    made = runs.points(**{"num_steps": 1, "init_from": str(source), **changed})
    ends = {"name": "linear", "log_snr_max": 8.0, "log_snr_min": -8.0}
    parts = {"schedule": {**ends, **(schedule or {})}, **(model or {})}
    return dataclasses.replace(
        made,
        model=dataclasses.replace(made.model, **parts),
        optimizer=dataclasses.replace(made.optimizer, learning_rate=rate, warmup_steps=0),
    )


def assert_close(one, other, **tolerance):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def apart(one, other):
    pairs = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    return max(float(np.max(np.abs(a - b))) for a, b in pairs)


def test_a_run_begins_with_the_averaged_parameters_and_a_new_optimiser(source, tmp_path, capsys):
    state = train.train(config(source), tmp_path)
    ema, raw = (vdm.run.load(source, kind).params for kind in ("ema", "raw"))
    assert apart(ema, raw) > 1e-5
    assert_close(state.params, ema, atol=1e-8)
    assert_close(state.ema, ema, atol=1e-8)
    assert int(state.step) == 1 and {1} == counts(state.opt_state, optax.ScaleByAdamState)
    said = capsys.readouterr().err
    assert f"begins with the averaged parameters of {source} at step 4, and with a new" in said


def counts(opt_state, kind):
    found = jax.tree.leaves(opt_state, is_leaf=lambda leaf: isinstance(leaf, kind))
    return {int(state.count) for state in found if isinstance(state, kind)}


def test_an_optimiser_that_is_kept_goes_on_and_its_rate_begins_anew(source, tmp_path, capsys):
    state = train.train(config(source, init_optimizer="kept"), tmp_path)
    raw = vdm.run.load(source, "raw").params
    assert_close(state.params, raw, atol=1e-8)
    # The average before its first step here: a tenth of it is new, (1 + 0)/(10 + 0) is kept.
    ema = vdm.run.load(source).params
    assert_close(state.ema, jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, ema, raw), atol=1e-7)
    # The points' schedule has no parameters: the counts are the network's.
    assert 5 in counts(state.opt_state, optax.ScaleByAdamState)
    assert counts(state.opt_state, optax.ScaleByScheduleState) == {1}
    assert "the optimiser's moments; the learning rate begins anew" in capsys.readouterr().err


def test_a_schedule_of_another_kind_begins_anew_and_the_network_keeps_its_range(
    source, tmp_path, capsys
):
    other = {"name": "learned_linear", "log_snr_max": 5.0, "log_snr_min": -4.0}
    train.train(config(source, schedule=other), tmp_path)
    assert "the schedule is another one, and begins anew" in capsys.readouterr().err
    new, old = vdm.run.load(tmp_path), vdm.run.load(source)
    ends = new.model.log_snr(new.params)(jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(ends, [5.0, -4.0], atol=0.03)  # after a step of theirs
    network = json.loads((tmp_path / "config.json").read_text())["model"]["network"]
    assert (network["log_snr_max"], network["log_snr_min"]) == (8.0, -8.0)
    # The same function of z and λ.
    z, level = jax.random.normal(jax.random.key(0), (6, 2)), jnp.full(6, 1.5)
    both = [run.model.denoiser(run.params)(z, level) for run in (new, old)]
    np.testing.assert_allclose(*both, atol=1e-6)


def test_without_its_source_a_run_that_has_begun_resumes(source, tmp_path, capsys):
    gone = shutil.copytree(source, tmp_path / "gone")
    path = runs.write_config_file(tmp_path / "points.py", config(""))
    new = f"--workdir={tmp_path / 'new'}"
    assert cli.main(["train", f"--config={path}", new, f"--init_from={gone}"]) == 0
    shutil.rmtree(gone)
    capsys.readouterr()
    longer = f"--config.train.num_steps={2}"
    assert cli.main(["train", f"--config={path}", new, f"--init_from={gone}", longer]) == 2
    error = capsys.readouterr().err
    assert "holds no run" in error and "resumes without it" in error and error.count("\n") == 1
    assert cli.main(["train", new]) == 0


def test_the_memory_of_the_source_is_given_back(source, tmp_path):
    sizes = []

    def measure(record):
        gc.collect()
        sizes.append(sum(one.nbytes for one in jax.live_arrays()))

    for place in (source, ""):  # that with a source first: what is cached counts against it
        made = config(place, num_steps=4, log_every=2)
        train.train(made, tmp_path / f"of_{len(sizes)}", on_record=measure)
    size = sum(one.nbytes for one in jax.tree.leaves(vdm.run.load(source).params))
    assert sizes[1] < sizes[3] + size


def test_a_run_that_rolls_back_before_its_first_checkpoint_reads_its_source_again(
    source, tmp_path, monkeypatch
):
    first = initial.applied
    begun = []
    monkeypatch.setattr(initial, "applied", lambda *one: begun.append(first(*one)) or begun[-1])
    found = iter(["the loss is not finite", None, None, None])
    monkeypatch.setattr(finite, "problem", lambda *one: next(found))
    state = train.train(config(source, num_steps=2, log_every=1, on_nan="roll_back"), tmp_path)
    assert (int(state.step), int(state.rollbacks), len(begun)) == (2, 1, 2)
    assert_close(state.params, vdm.run.load(source).params, atol=1e-8)


def test_a_network_without_a_range_resumes_without_its_source(source, tmp_path, monkeypatch):
    (tmp_path / "rangeless.py").write_text(RANGELESS)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    model = {"network": {"name": "rangeless:Net"}}
    plain = config("", model=model)
    train.train(plain, tmp_path / "gone")
    train.train(config(tmp_path / "gone", model=model), tmp_path / "new")
    shutil.rmtree(tmp_path / "gone")
    assert cli.main(["train", f"--workdir={tmp_path / 'new'}"]) == 0
    # One that has a range would not be the same network.
    with pytest.raises(UserError, match=r"the network of .* is another one: "):
        train.train(config(source, model=model), tmp_path / "other")


RANGELESS = """
import flax.linen as nn


class Net(nn.Module):
    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train):
        return nn.Dense(z.shape[-1])(nn.tanh(nn.Dense(8)(z)))
"""


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"source": "nowhere"}, "train.init_from: nowhere holds no run"),
        ({"model": {"network": {**runs.MLP, "width": 8}}}, "the network of .* is another one: "),
        ({"model": {"prediction": "v"}}, "model.prediction is 'eps' in .* and 'v' here"),
        ({"source": "", "init_optimizer": "kept"}, "'kept' needs train.init_from"),
        (
            {"init_optimizer": "kept", "schedule": {"name": "learned_linear"}},
            "'kept' needs the schedule of the run it begins with, 'linear'",
        ),
        ({"init_optimizer": "old"}, "unknown train.init_optimizer 'old'"),
    ],
)
def test_what_a_run_cannot_begin_with_is_one_line(source, tmp_path, changed, message):
    with pytest.raises(UserError, match=message) as error:
        train.train(config(**{"source": source, **changed}), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_an_optimiser_of_another_form_cannot_be_kept(source, tmp_path):
    made = config(source, init_optimizer="kept")
    other = dataclasses.replace(made.optimizer, clip_norm=0.0)
    with pytest.raises(UserError, match=r"the optimiser of .* is another one: "):
        train.train(dataclasses.replace(made, optimizer=other), tmp_path / "run")
