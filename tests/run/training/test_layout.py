"""A training with stacked blocks is the training without, and its files are the same."""

import dataclasses
import functools
import json

import jax
import numpy as np
import optax
import pytest
from poison import poison

import runs
import vdm.run
from vdm.networks import stacked
from vdm.run import config as configs, export, mesh as meshes, train
from vdm.run.config import DevicesConfig
from vdm.run.errors import UserError
from vdm.run.training import build, layout, program as programs
from vdm.run.training.step import Batch, init_state
from vdm.run.workdir import chains, checkpoint
from vdm.run.workdir.metrics import METRICS_FILE

pytestmark = pytest.mark.float32

NETWORK = {**runs.UNET, "num_blocks": 2, "dropout": 0.1}


def images(scan, **changed):
    every = {"num_steps": 6, "log_every": 2, "checkpoint_every": 4, "batch_size": 2, **changed}
    devices = DevicesConfig(scan_blocks=scan)
    return dataclasses.replace(runs.images(NETWORK, **every), devices=devices)


def metrics(workdir):
    return [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]


def assert_close(one, other, tolerance):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The workdir and the last state of the same training in both layouts."""
    made = {}
    for scan in ("no", "yes"):
        workdir = tmp_path_factory.mktemp(scan)
        made[scan] = workdir, train.train(images(scan), workdir)
    return made


def test_a_training_is_the_same_in_both_layouts(both):
    (one, state), (other, scanned) = both["no"], both["yes"]
    assert_close(state, scanned, 1e-4)
    assert [line["step"] for line in metrics(other)] == [2, 4, 6]
    for a, b in zip(metrics(one), metrics(other), strict=True):
        assert a["step"] == b["step"] and a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    with checkpoint.manager(other, kept=2) as checkpoints:
        assert checkpoints.all_steps() == [4, 6]


def test_files_have_one_layout_and_a_loaded_run_that_of_its_devices(both):
    one, other = (vdm.run.load(both[scan][0]) for scan in ("no", "yes"))
    assert "down_block_1" in one.params["network"]
    assert "down_block_*" in other.params["network"]
    single = stacked.unstack(other.params)
    assert_close(one.params, single, 1e-4)
    assert chains.params_sum(other.params) == chains.params_sum(single)
    x = np.arange(2 * 64).reshape(2, 8, 8, 1) % 17
    stacked_score = other.score(x, key=0, levels_per_example=2).bpd
    single_score = other._replace(params=single).score(x, key=0, levels_per_example=2).bpd
    np.testing.assert_allclose(stacked_score, single_score, rtol=1e-5)


def test_an_export_has_one_layout(both, tmp_path):
    for scan, (workdir, _) in both.items():
        export.write(vdm.run.load(workdir), workdir, tmp_path / f"{scan}.safetensors", ())
    one, other = (vdm.run.load(tmp_path / f"{scan}.safetensors") for scan in both)
    assert_close(one.params, stacked.unstack(other.params), 1e-4)


@pytest.mark.parametrize(("first", "then"), [("no", "yes"), ("yes", "no")])
def test_a_run_is_resumed_in_the_other_layout(both, tmp_path, first, then):
    train.train(images(first, num_steps=4), tmp_path)
    assert_close(train.train(images(then), tmp_path), both["no"][1], 1e-4)


def test_what_is_not_finite_is_not_saved_though_the_next_step_has_begun(tmp_path, monkeypatch):
    poison(monkeypatch, at=4, rollbacks=100)
    with pytest.raises(UserError, match="loss is nan at step 4: stopped"):
        train.train(images("yes", checkpoint_every=2), tmp_path)
    with checkpoint.manager(tmp_path, kept=2) as checkpoints:
        assert checkpoints.all_steps() == [2]
    assert [line["step"] for line in metrics(tmp_path)] == [2]


def trainer_of(scan, **optimizer):
    config = images(scan)
    values = configs.to_dict(config)
    values["optimizer"] |= {"warmup_steps": 0, "weight_decay": 0.5, "learning_rate": 0.1}
    values["optimizer"] |= optimizer
    return build.trainer(configs.from_dict(values))


EXAMPLE = Batch(np.zeros((1, 8, 8, 1), np.int32), None)


@pytest.mark.parametrize("method", ["adamw", "optax:adafactor", "optax:lamb"])
def test_an_optimiser_takes_the_same_step_in_both_layouts(method):
    """Decay, factors and norms of arrays are those of a block's own array."""
    trainer = trainer_of("yes", method={"name": method})
    mesh = meshes.make(DevicesConfig(), jax.devices()[:1])
    held = layout.of(trainer, mesh, programs.template(trainer, mesh, EXAMPLE))
    params = jax.jit(functools.partial(init_state, trainer, EXAMPLE))().params
    rng = np.random.default_rng(0)
    params, gradient = (
        jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), params)
        for _ in range(2)
    )

    @functools.partial(jax.jit, static_argnums=0)
    def moved(optimizer, params, gradient):
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    one = moved(trainer.optimizer, params, gradient)
    inside = layout.stepping(trainer, held).optimizer
    other = moved(inside, *stacked.stack((params, gradient)))
    assert_close(one, stacked.unstack(other), 1e-5)


def test_a_stacked_array_is_divided_as_its_parts_are():
    config = images("yes")
    network = {**config.model.network, "channels": 64}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, network=network))
    trainer, mesh = build.trainer(config), meshes.make(DevicesConfig(fsdp=2))
    template = programs.template(trainer, mesh, EXAMPLE)
    held = layout.of(trainer, mesh, template).template
    assert len(jax.tree.leaves(held)) < 0.8 * len(jax.tree.leaves(template))
    one = template.ema["network"]["down_block_0"]["conv1"]["kernel"]
    all_of_them = held.ema["network"]["down_block_*"]["conv1"]["kernel"]
    assert all_of_them.shape == (2, *one.shape)
    assert "fsdp" in one.sharding.spec
    assert tuple(all_of_them.sharding.spec) == (None, *one.sharding.spec)


def test_blocks_are_scanned_where_the_devices_are_not_cpus():
    unet, points = trainer_of("auto").model.network, runs.points()
    for scan, expected in (("auto", (True, False)), ("yes", (True, True)), ("no", (False, False))):
        found = tuple(layout.scans(images(scan), unet, platform) for platform in ("tpu", "cpu"))
        assert found == expected
    assert not layout.scans(points, build.model(points).network, "tpu")


def test_the_steps_of_a_dispatch_fit_between_all_that_is_done_every_so_often():
    def chosen(platform="gpu", **every):
        return programs.steps_per_dispatch(runs.points(**every), platform)

    every = {"num_steps": 1000, "log_every": 100, "checkpoint_every": 1000}
    assert chosen(**every) == 5
    assert chosen(**{**every, "log_every": 8}) == 8
    assert chosen(**every, sample_every=6) == 2
    assert chosen(**every, validate_every=7) == 5  # there are no validations
    assert chosen(**every, validate_every=7, validation_examples=10) == 1
    assert chosen("cpu", **every) == 1
    asked = dataclasses.replace(runs.points(**every), devices=DevicesConfig(steps_per_dispatch=10))
    assert programs.steps_per_dispatch(asked, "gpu") == 10
