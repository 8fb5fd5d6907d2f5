"""Runs that are conditioned on vectors, fields and classes, from files to samples and bits."""

import dataclasses
import shutil

import exact_conditions as exact
import jax
import numpy as np
import pytest

from vdm.condition import Conditions
from vdm.run import config as configs, data, evaluate, fit_chain, train, trained
from vdm.run.data import validation
from vdm.run.data.dataset import settle
from vdm.run.errors import UserError
from vdm.run.evaluation import files
from vdm.run.training import parts, program as programs
from vdm.run.training.batches import on_devices
from vdm.run.workdir import validations

pytestmark = pytest.mark.float32
CASES = [("vector",), ("field",), ("label", "vector", "field")]
SCALES = {}


def split_of(folder, kinds, num=(400, 300)):
    """Arrays of both splits in one file, and its path."""
    train_set, test = (exact.draw(n, kinds, seed) for n, seed in zip(num, (1, 2), strict=True))
    name = {"x": "{}", "labels": "{}_labels", "cond": "{}_cond", "cond_field": "{}_cond_field"}
    found = {name[key].format("train"): value for key, value in train_set.items()}
    found |= {name[key].format("test"): value for key, value in test.items()}
    np.savez(folder / "data.npz", **found)
    return train_set, test, folder / "data.npz"


def config_of(path, network, **others):
    return configs.from_dict(
        {
            "data": {"name": "arrays", "path": str(path)},
            "model": {
                "schedule": {"name": "linear", "log_snr_max": 12.0, "log_snr_min": -12.0},
                "network": network,
                "likelihood": {"name": "gaussian", "scale": float(np.exp(-6.0))},
            },
            "train": {"num_steps": 1, "batch_size": 16, "log_every": 1, **others},
            "optimizer": {"warmup_steps": 0},
            "evaluate": {"levels_per_example": 32, "batch_size": 64, "num_steps": "inf"},
            "sample": {"num_steps": 50},
        }
    )


def exact_network(arrays, kinds, optional=False):
    """The config of the exact denoiser, which undoes the scale of these training arrays."""

    def scale(name):
        if name not in arrays:
            return ((), ())
        axes = tuple(range(arrays[name].ndim - 1))
        return tuple(arrays[name].mean(axes).tolist()), tuple(arrays[name].std(axes).tolist())

    return {
        "name": "exact_conditions:network",
        "kinds": list(kinds),
        "vector": [list(part) for part in scale("cond")],
        "field": [list(part) for part in scale("cond_field")],
        "optional": optional,
    }


def parts_of(arrays):
    return Conditions(*(arrays.get(name) for name in ("labels", "cond", "cond_field")))


def given(arrays):
    """The conditions as a caller gives them: an array where there is one kind."""
    there = [part for part in parts_of(arrays) if part is not None]
    return there[0] if len(there) == 1 else parts_of(arrays)


def near(values, truth, factor=4.0, systematic=2e-3):
    """Whether a mean is that of the truth, within standard errors of the paired difference.

    The likelihood's scale and both ends of λ cost less than `systematic` bits.
    """
    gap = np.asarray(values) - truth
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    assert abs(gap.mean()) < factor * error + systematic, (gap.mean(), error)


@pytest.mark.parametrize("kinds", CASES)
def test_the_exact_denoiser_reaches_the_closed_form(kinds, tmp_path):
    train_set, test, path = split_of(tmp_path, kinds)
    config = config_of(path, exact_network(train_set, kinds))
    train.train(config, tmp_path / "run")
    path.unlink()  # neither samples nor scores need the data
    data.load.cache_clear()
    run = trained.load(tmp_path / "run")
    assert run.condition.names == kinds
    scores = run.score(test["x"].astype(np.float32), given(test), key=0, levels_per_example=32)
    near(scores.bpd, exact.bits(test))
    some = {name: array[:16] for name, array in test.items()}
    ode = run.score(some["x"].astype(np.float32), given(some), key=0, bound="ode")
    near(ode.bpd, exact.bits(some), systematic=5e-3)
    x = run.sample(300, given(test), key=1, sampler="heun", num_steps=100)
    # Of the samples the mean given the condition, and the spread around it: chi-squared.
    gap = x[..., 0] - exact.mean(parts_of(test))
    assert abs(gap.mean()) < 4 * exact.S / np.sqrt(gap.size) + 2e-2 * exact.S
    assert abs(gap.std() / exact.S - 1) < 4 / np.sqrt(2 * gap.size) + 3e-2


def test_evaluations_and_validations_are_given_the_conditions(tmp_path):
    kinds = CASES[-1]
    train_set, test, path = split_of(tmp_path, kinds)
    # The scale is that of what is trained on: the held-out examples have no part in it.
    kept, held = (validation.positions(400, 100, held_out=out) for out in (False, True))
    network = exact_network({name: array[kept] for name, array in train_set.items()}, kinds)
    train.train(config_of(path, network, validation_examples=100), tmp_path / "run")
    watched = validations.read(tmp_path / "run", 100)
    near(watched.ema[-1], exact.bits({name: array[held] for name, array in train_set.items()}))
    run = trained.load(tmp_path / "run")
    few = dataclasses.replace(
        run.config.few_steps, num_steps="5", variance="level", num_levels=20, num_examples=200
    )
    fit_chain.fit(run, few, tmp_path / "run")
    settings = dataclasses.replace(
        run.config.evaluate,
        bound="vlb,ode",
        num_steps="5:chain,30,inf",
        num_paths=8,
        ode_steps=40,
        divergence="exact",
        batch_size=50,
    )
    evaluate.measure(run, "test", settings, tmp_path / "run")
    columns = np.load(tmp_path / "run" / files.examples_file("test"))
    truth = exact.bits(test)
    near(columns["total_inf"], truth)
    near(columns["ode_1"], truth, systematic=2e-2)  # of 40 even steps
    # A bound of few steps is looser, that of its paths less so, and none is below the truth.
    loose, paths, chain = (columns[k] for k in ("total_30", "paths_30", "total_5_level_chain"))
    for bound in (loose, paths, chain):
        gap = bound - truth
        assert gap.mean() > -4 * gap.std() / np.sqrt(len(gap))
    assert paths.mean() < loose.mean()
    near(chain, truth, systematic=0.02)  # its variances make five steps of a Gaussian exact


def test_without_its_condition_a_run_has_the_entropy_of_all(tmp_path):
    kinds = ("vector", "field")
    train_set, test, path = split_of(tmp_path, kinds)
    network = exact_network(train_set, kinds, optional=True)
    train.train(config_of(path, network, cond_dropout=0.5), tmp_path / "run")
    run = trained.load(tmp_path / "run")
    found = {}
    for unconditional in (False, True):
        settings = dataclasses.replace(run.config.evaluate, unconditional=unconditional)
        evaluate.measure(run, "test", settings, tmp_path / "run")
        found[unconditional] = np.load(tmp_path / "run" / files.examples_file("test"))["total_inf"]
    near(found[False], exact.bits(test))
    near(found[True], exact.bits_without(test["x"]))
    np.testing.assert_allclose(
        run.score(test["x"].astype(np.float32), key=0, levels_per_example=32).bpd,
        found[True],
        rtol=1e-4,
    )


def small(path, **network):
    """A run whose network learns, for what needs no exact one."""
    config = config_of(path, {"name": "mlp", "width": 16, "num_blocks": 1, **network}, num_steps=4)
    return dataclasses.replace(
        config, evaluate=dataclasses.replace(config.evaluate, levels_per_example=4)
    )


def test_units_and_the_batch_have_no_influence(tmp_path):
    train_set, _, path = split_of(tmp_path, ("vector", "field"), (60, 40))
    found = []
    for name, by, plus in (("kelvin", 1.0, 0.0), ("celsius", 1.0, -273.15), ("inch", 0.0394, 5.0)):
        folder = tmp_path / name
        folder.mkdir()
        units = {key: np.asarray(value) for key, value in np.load(path).items()}
        for key in units:
            if "cond" in key:
                units[key] = units[key] * by + plus
        np.savez(folder / "data.npz", **units)
        config = small(folder / "data.npz", cond_dim=2, cond_channels=2)
        train.train(config, folder / "run")
        run = trained.load(folder / "run")
        for batch_size in (7, 64):
            settings = dataclasses.replace(run.config.evaluate, batch_size=batch_size)
            evaluate.measure(run, "test", settings, folder / "run")
            columns = np.load(folder / "run" / files.examples_file("test"))
            found.append(("bits", columns["total_inf"]))
        cond = Conditions(None, units["test_cond"], units["test_cond_field"])
        x = run.sample(5, Conditions(None, cond.vector[:5], cond.field[:5]), key=0)
        other = run.sample(5, Conditions(None, cond.vector[5:10], cond.field[5:10]), key=0)
        assert np.abs(x - other).max() > 1e-3  # the condition has an influence
        found.append(("x", x))
    evaluated = [one for name, one in found if name == "bits"]
    drawn = [one for name, one in found if name == "x"]
    for same in (evaluated, drawn):
        for other in same[1:]:
            np.testing.assert_allclose(other, same[0], rtol=2e-4, atol=2e-4)
    first = trained.load(tmp_path / "kelvin/run").condition
    np.testing.assert_allclose(first.vector.mean, train_set["cond"].mean(0), rtol=1e-12)
    np.testing.assert_allclose(first.field.std, train_set["cond_field"].std((0, 1)), rtol=1e-12)


def test_two_devices_and_files_on_disk_give_the_same_run(tmp_path):
    _, _, path = split_of(tmp_path, exact.KINDS, (60, 40))
    network = {"num_classes": 3, "cond_dim": 2, "cond_channels": 2}
    states = []
    for devices, where in ((1, "yes"), (2, "yes"), (2, "no")):
        config = small(path, **network)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, in_memory=where))
        made = parts.prepare(config, jax.devices()[:devices])
        program = programs.build(made.trainer, made.mesh, made.example)
        state = program.layout.hold(program.init())
        dataset = settle(made.dataset, where)
        for batch in on_devices(dataset, made.condition, config, made.mesh, 0):
            assert all(len(leaf.sharding.device_set) == devices for leaf in jax.tree.leaves(batch))
            state, _ = program.step(state, [batch])
        states.append(jax.device_get(state.params))
    for other in states[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), states[0], other
        )


def test_a_run_resumes_and_begins_another_with_its_scale(tmp_path, capsys):
    _, _, path = split_of(tmp_path, ("vector",), (60, 40))
    config = small(path, cond_dim=2)
    run = tmp_path / "run"
    train.train(
        dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=2)), run
    )
    train.train(config, run)
    alone = tmp_path / "alone"
    train.train(config, alone)
    one, other = (trained.load(folder) for folder in (run, alone))
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert one.condition == other.condition
    # Other data: the new run keeps the scale that its parameters have learned with.
    arrays = dict(np.load(path))
    arrays["train_cond"] = arrays["train_cond"] + 100.0
    np.savez(tmp_path / "moved.npz", **arrays)
    new = small(tmp_path / "moved.npz", cond_dim=2)
    new = dataclasses.replace(new, train=dataclasses.replace(new.train, init_from=str(run)))
    train.train(new, tmp_path / "new")
    assert "conditions are standardised as there" in capsys.readouterr().err
    begun = trained.load(tmp_path / "new")
    assert begun.condition == one.condition
    # What it samples with by default are its own training examples.
    index = np.linspace(0, 59, 60).round().astype(int)
    np.testing.assert_array_equal(begun.condition.some.vector, arrays["train_cond"][index])
    shutil.rmtree(run)
    again = configs.load(tmp_path / "new")
    again = dataclasses.replace(again, train=dataclasses.replace(again.train, num_steps=5))
    train.train(again, tmp_path / "new")
    assert trained.load(tmp_path / "new").condition == begun.condition
    # With both runs' scales gone, those of the data are not what the network has learned with.
    (tmp_path / "new/conditions.npz").unlink()
    with pytest.raises(UserError, match=r"new has lost conditions.npz, .* which it took from"):
        train.train(again, tmp_path / "new")
    # The same file with other numbers is another run.
    arrays["train_cond"] = arrays["train_cond"] * 2.0
    np.savez(path, **arrays)
    data.load.cache_clear()
    with pytest.raises(UserError, match="holds a run on other vectors: their means"):
        train.train(config, alone)
