"""Configs: what is written is what is run, and mistakes are named."""

import copy
import dataclasses

import pytest

import runs
from vdm.run import config as configs
from vdm.run.config import flags
from vdm.run.errors import UserError


def values():
    return copy.deepcopy(configs.to_dict(runs.points()))


def test_a_config_survives_its_file(tmp_path):
    config = runs.images(num_classes=10)
    configs.keep(config, tmp_path)
    assert configs.load(tmp_path) == config


def test_defaults_for_config_files_are_those_of_the_dataclasses():
    required = {key: values()[key] for key in ("data", "model", "train")}
    assert configs.from_dict({**configs.default_values().to_dict(), **required}) == (
        configs.from_dict(required)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["train"].update(num_stpes=3), "'train.num_steps'?"),
        (lambda v: v.update(optimiser={}), "'optimizer'?"),
        (lambda v: v["train"].pop("num_steps"), "'train.num_steps' is missing"),
        (
            lambda v: v["train"].update(num_steps="3"),
            "train.num_steps must be of type int: got '3' (str)",
        ),
        (lambda v: v["train"].update(num_steps=3.5), "must be of type int: got 3.5"),
        (lambda v: v["train"].update(num_steps=True), "must be of type int: got True"),
        (lambda v: v["train"].update(num_steps=0), "at least 1: got 0"),
        (
            lambda v: v["optimizer"].update(learning_rate=-1),
            "optimizer.learning_rate must be above 0: got -1",
        ),
        (
            lambda v: v["optimizer"].update(ema_decay=1.0),
            "optimizer.ema_decay must be below 1: got 1.0",
        ),
        (lambda v: v["optimizer"].update(decay="cosin"), "'cosine'?"),
        (
            lambda v: v["train"].update(accumulation_steps=0),
            "train.accumulation_steps must be at least 1: got 0",
        ),
        (
            lambda v: v["train"].update(batch_size=9, accumulation_steps=6),
            "multiple of train.accumulation_steps: got 9 and 6",
        ),
        (
            lambda v: v["optimizer"].update(shape_learning_rate=0),
            "optimizer.shape_learning_rate must be above 0: got 0",
        ),
        (lambda v: v["optimizer"].update(b2=-0.1), "optimizer.b2 must be at least 0: got -0.1"),
        (
            lambda v: v["optimizer"].update(clip_norm=-1),
            "optimizer.clip_norm must be at least 0: got -1",
        ),
        (lambda v: v["optimizer"].update(clip_norm=True), "must be of type float: got True"),
        (
            lambda v: v["evaluate"].update(num_steps="9,ten"),
            "evaluate.num_steps must be whole numbers from 1 to 100,000 or inf",
        ),
        (lambda v: v.update(seed=2**32), "seed must be at most 4,294,967,295: got 4,294,967,296"),
        (lambda v: v["model"]["network"].update(dropout=float("nan")), "must be finite: got nan"),
        (lambda v: v["model"]["network"].update(width={}), "must be a plain value: got {}"),
        (lambda v: v.update(train=7), "train must be a block: got 7"),
        (lambda v: v["model"].update(schedule="linear"), "must be a block with a 'name'"),
    ],
)
def test_a_mistake_is_named(change, message):
    wrong = values()
    change(wrong)
    with pytest.raises(UserError) as error:
        configs.from_dict(wrong)
    assert message in str(error.value)


def test_the_lowest_values_are_fine():
    lowest = values()
    for key, value in lowest["train"].items():
        lowest["train"][key] = value if isinstance(value, bool | str) else 1
    lowest["train"].update(cond_dropout=0)
    lowest["optimizer"].update(warmup_steps=0, clip_norm=0, weight_decay=0, b1=0, ema_decay=0)
    assert configs.from_dict(lowest).train.batch_size == 1


def test_a_list_of_arguments_is_the_same_config_after_its_file(tmp_path):
    wanted = values()
    wanted["model"]["schedule"] = {"name": "from_betas", "betas": [0.1, 0.2]}
    config = configs.from_dict(wanted)
    configs.keep(config, tmp_path)
    configs.keep(config, tmp_path)
    assert configs.load(tmp_path) == config


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["axes=3", "padding=wrap"], {"axes": 3, "padding": "wrap"}),
        (["padding=('wrap','zero')"], {"padding": ("wrap", "zero")}),
        (["levels=[2, 1]"], {"levels": (2, 1)}),
        (["levels=(2,)", "levels=(1,)"], {"levels": (1,)}),  # the last one, as of other keys
        (["fourier_exponents=(6,7)"], {"fourier_exponents": (6, 7)}),  # in the file, as ()
        (["remat=True", "dtype=bfloat16"], {"remat": True, "dtype": "bfloat16"}),
    ],
)
def test_a_command_sets_any_argument_of_a_part(tmp_path, words, changes):
    file = runs.write_config_file(tmp_path / "unet.py", runs.images(runs.UNET))
    overrides = [f"--config.model.network.{word}" for word in words]
    config = flags.config(str(file), tmp_path, overrides)
    assert config.model.network == {**runs.UNET, "num_classes": None, **changes}


def test_an_argument_is_that_of_the_part_that_the_command_names(tmp_path):
    file = runs.write_config_file(tmp_path / "points.py", runs.points())
    name, argument = "--config.model.likelihood.name=discretised", "likelihood.levels=(9)"
    network = flags.config(str(file), tmp_path, [name, f"--config.model.{argument}"])
    assert network.model.likelihood["levels"] == 9
    with pytest.raises(UserError, match=r"unknown config key 'model.likelihood.levels'"):
        flags.config(str(file), tmp_path, [f"--config.model.{argument}"])


def test_an_integer_is_a_fine_float():
    wanted = values()
    wanted["optimizer"]["learning_rate"] = 1
    assert configs.from_dict(wanted).optimizer.learning_rate == 1.0


def changed(**blocks):
    config = runs.points()
    return dataclasses.replace(
        config,
        **{name: dataclasses.replace(getattr(config, name), **new) for name, new in blocks.items()},
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"clip_norm": 0.5}}, "optimizer.clip_norm is 1.0 there and 0.5 here"),
        ({"data": {"augment": "flip"}}, "data.augment is 'none' there and 'flip' here"),
        (
            {"evaluate": {"seed": 5}, "model": {"prediction": "v"}, "data": {"augment": "flip"}},
            r"'flip' here \(and 1 more\)",
        ),
    ],
)
def test_a_workdir_keeps_one_config(tmp_path, change, message):
    configs.keep(runs.points(), tmp_path)
    with pytest.raises(UserError, match=message):
        configs.keep(changed(**change), tmp_path)
    assert configs.load(tmp_path) == runs.points()


def test_a_workdir_keeps_its_seed(tmp_path):
    configs.keep(runs.points(), tmp_path)
    with pytest.raises(UserError, match="seed is 0 there and 1 here"):
        configs.keep(dataclasses.replace(runs.points(), seed=1), tmp_path)


def test_what_changes_no_step_may_change(tmp_path):
    configs.keep(runs.points(), tmp_path)
    often = {"log_every": 3, "checkpoint_every": 7, "checkpoints_kept": 1}
    longer = changed(train={"num_steps": 9, **often}, evaluate={"seed": 5}, sample={"seed": 5})
    configs.keep(longer, tmp_path)
    assert configs.load(tmp_path) == longer


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": {"num_steps": 9}}, []),
        ({"train": {"num_steps": 3}}, ["train.num_steps is 3, was 4"]),
        (
            {"train": {"num_steps": 9}, "optimizer": {"decay": "cosine"}},
            ["optimizer.decay is 'cosine', was 'constant'", "train.num_steps is 9, was 4"],
        ),
        ({"train": {"batch_size": 7, "log_every": 3}}, ["train.batch_size is 7, was 50"]),
    ],
)
def test_what_changes_the_steps_to_come_is_said(tmp_path, change, words):
    configs.keep(runs.points(), tmp_path)
    assert configs.changes(changed(**change), tmp_path) == words
    assert configs.load(tmp_path) == runs.points()
