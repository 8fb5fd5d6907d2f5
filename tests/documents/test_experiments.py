"""Every experiment is a config that fits its data, and says how to run it."""

import dataclasses
import functools
import json
import math
import pathlib
import re

import chex
import jax
import numpy as np
import pytest

import runs
from vdm.run import cli, data
from vdm.run.config import ObjectiveConfig, OptimizerConfig
from vdm.run.errors import UserError
from vdm.run.training import build, parts, program as programs
from vdm.run.training.batches import make_batch

EXPERIMENTS = sorted((pathlib.Path(__file__).parents[2] / "experiments").glob("*.py"))


def path_of(name):
    return next(path for path in EXPERIMENTS if path.stem == name)


@pytest.mark.float32
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_config_fits_its_data(path, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(runs.PREPARED))
    monkeypatch.chdir(tmp_path)  # where fields.py has its user's data
    np.savez("fields.npz", x=np.arange(256, dtype=np.uint8).repeat(160).reshape(160, 16, 16, 1))
    config = cli.read_config([f"--config={path}"])
    try:
        dataset = data.load(config.data, "train")
    except UserError as error:
        if "is not prepared" not in str(error):
            raise
        pytest.skip(str(error))
    condition = parts.of(config, dataset).condition
    conditional = ("cifar10_aug", "conditional_fields", "digits_conditional", "digits_guided")
    assert (condition != condition.without()) == (path.stem in (*conditional, "relief"))
    assert len(make_batch(dataset, condition, config, 0).x) == config.train.batch_size
    text = path.read_text()
    assert f"vdm train    --config=experiments/{path.name} --workdir=runs/{path.stem}" in text


@pytest.mark.parametrize(
    ("name", "block", "value"),
    [
        ("digits_learned", ("model", "schedule"), "learned_monotone"),
        ("digits_adaptive", ("objective", "law"), "adaptive"),
        ("digits_closed_form", ("objective", "law"), "sigmoid"),
        ("digits_weighted", ("objective", "weighting"), "sigmoid"),
    ],
)
def test_the_experiment_is_what_its_name_says(name, block, value):
    config = cli.read_config([f"--config={path_of(name)}"])
    assert getattr(getattr(config, block[0]), block[1])["name"] == value


PUBLISHED = {
    # From the authors' configs: channels, blocks, dropout, rate, parameters; and how many of
    # these ours has more, from the shapes of how it is told of an augmentation.
    "cifar10": (128, 32, 0.1, 2e-4, 30_578_181, -4 * 128),
    "cifar10_aug": (
        *(256, 32, 0.05, 1e-4, 122_140_677),
        (2 * 256 + 256 * 4 * 256) - 4 * 256 + (3 * 1024 + 1 + 2) - (3 * 1024 + 2),
    ),
    "imagenet32": (256, 32, 0.1, 2e-4, 122_137_605, -4 * 256),
    "imagenet64": (256, 64, 0.1, 2e-4, 237_603_845, -4 * 256),
}


@pytest.mark.float32
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_settings_are_those_of_its_authors(name):
    channels, blocks, dropout, rate, parameters, more = PUBLISHED[name]
    config = cli.read_config([f"--config={path_of(name)}"])
    network, optimizer = config.model.network, config.optimizer
    assert (network["channels"], network["num_blocks"], network["dropout"]) == (
        channels,
        blocks,
        dropout,
    )
    assert optimizer == OptimizerConfig(
        learning_rate=rate,
        schedule_learning_rate=rate,
        decay="constant",
        warmup_steps=100,
        b1=0.9,
        b2=0.99,
        weight_decay=0.01,
        clip_norm=0.0,
        ema_decay=0.9999,
    )
    assert config.objective == ObjectiveConfig(draw="low_discrepancy", num_steps="inf")
    assert (config.train.num_steps, config.train.batch_size) == (10_000_000, 128)
    schedule = config.model.schedule
    assert (schedule["log_snr_max"], schedule["log_snr_min"]) == (13.3, -5.0)
    side = 64 if name == "imagenet64" else 32
    cond = np.zeros(1, int) if config.data.augment == "vdm" else None
    init = functools.partial(build.model(config).init, x=np.zeros((1, side, side, 3), "u1"))
    shapes = jax.eval_shape(functools.partial(init, cond=cond), jax.random.key(0))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count == parameters + more
    assert f"{parameters:,}" in path_of(name).read_text()
    assert f"{count:,}" in path_of(name).read_text()


def small_form(path):
    """Make the data of the small form in the working folder, and return its command."""
    form = r' {4}python -c "(.*?)"\n {4}vdm (train --config=.*?--config\.data\.path=\S+)'
    make, command = re.search(form, path.read_text(), re.DOTALL).groups()
    exec(make)
    data.load.cache_clear()  # every form calls its set noise.npy
    words = command.replace("\\\n", "").split()
    assert words[1] == f"--config=experiments/{path.name}"
    return ["train", f"--config={path}", *words[2:]]


@pytest.mark.float32
@pytest.mark.parametrize(
    "name",
    [
        # The law, the weights and the network that the others do not have; those are traced below.
        "cifar10_fast",
        *(
            pytest.param(n, marks=pytest.mark.long)
            for n in ("cifar10", "cifar10_aug", "imagenet32")
        ),
    ],
)
def test_the_small_form_trains_two_steps(name, tmp_path, monkeypatch):
    path = path_of(name)
    monkeypatch.chdir(tmp_path)
    assert cli.main(small_form(path)) == 0
    (record,) = map(json.loads, (tmp_path / "runs/small/metrics.jsonl").read_text().splitlines())
    assert record["step"] == 2
    lowest, highest = untrained_bpd(cli.read_config([f"--config={path}"]))
    assert 0.9 * lowest < record["loss"] < 1.1 * highest


@pytest.mark.float32
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, (32, 32, 3)) for name in ("cifar10", "cifar10_aug", "imagenet32")),
        ("imagenet64", (64, 64, 3)),
        ("mnist", (28, 28, 1)),
    ],
)
def test_the_small_form_of_others_is_traced(name, shape, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = small_form(path_of(name))
    made = parts.prepare(cli.read_config([word for word in words if "--config" in word]))
    config = made.trainer.config
    size = config.train.batch_size
    assert (size, *made.example.x.shape) == (4, 1, *shape)
    program = programs.build(made.trainer, made.mesh, made.example)
    batch = make_batch(made.dataset, made.condition, config, 0)
    assert (batch.cond is not None) == (name == "cifar10_aug") and batch.x.shape == (4, *shape)
    state, metrics = jax.eval_shape(program.step, program.template, [batch])
    chex.assert_trees_all_equal_shapes_and_dtypes(state, program.template)
    assert metrics["loss"].shape == (1,)


def untrained_bpd(config, batch_size=4):
    """The least and the most that spread levels make of ε̂ = z, or v̂ = 0, on uniform noise."""
    t = (np.linspace(0, 1, 101)[:, None] + np.arange(batch_size)) / batch_size
    if config.objective.law["name"] == "sigmoid":
        ends = np.log1p(np.exp([13.3, -5.0]))
        log_snr = np.log(np.expm1((1 - t) * ends[0] + t * ends[1]))
        weight = (ends[0] - ends[1]) * (1 + np.exp(-log_snr))
    else:
        log_snr, weight = 13.3 - 18.3 * t, 18.3
    alpha, sigma = 1 / np.sqrt(1 + np.exp(-log_snr)), 1 / np.sqrt(1 + np.exp(log_snr))
    # ε̂ = c z, and x has the variance 1/3.
    c = sigma if config.model.prediction == "v" else 1.0
    error = (1 - c * sigma) ** 2 + (c * alpha) ** 2 / 3
    bpd = 0.5 * np.mean(weight * error, axis=1) / math.log(2)
    return bpd.min(), bpd.max()


def test_the_fast_recipe_differs_from_the_papers_in_what_was_measured():
    paper, fast = (cli.read_config([f"--config={path_of(n)}"]) for n in ("cifar10", "cifar10_fast"))
    paper.objective.law["name"] = "sigmoid"
    paper.model.network.update(residual=False, wiener="stationary")
    replace, muon = dataclasses.replace, {"name": "muon"}
    assert fast == replace(
        paper,
        model=replace(paper.model, prediction="v"),
        optimizer=replace(paper.optimizer, decay="cosine", clip_norm=1.0, method=muon),
        train=replace(paper.train, num_steps=1_000_000),
    )


def test_both_sets_called_imagenet_are_named_and_never_mixed_up(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for name, size in (("imagenet32", "32x32"), ("imagenet64", "64x64")):
        sets = [f"{family}/{size}" for family in ("downsampled_imagenet", "imagenet_resized")]
        default = cli.read_config([f"--config={path_of(name)}"]).data.name
        assert default == sets[0]
        for flag in sets:
            assert f"--config.data.name={flag} " in path_of(name).read_text()
            config = cli.read_config([f"--config={path_of(name)}", f"--config.data.name={flag}"])
            data.load.cache_clear()
            with pytest.raises(UserError, match=f"{flag} is not prepared .*prepare the set once"):
                data.load(config.data, "test")
