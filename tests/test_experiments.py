"""Every experiment is a config that fits its data, and says how to run it."""

import pathlib

import pytest

import runs
from vdm.run import build, cli, condition, data
from vdm.run.batches import make_batch
from vdm.run.errors import UserError

EXPERIMENTS = sorted((pathlib.Path(__file__).parents[1] / "experiments").glob("*.py"))


@pytest.mark.float32
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_config_fits_its_data(path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(runs.PREPARED))
    config = cli.read_config([f"--config={path}"])
    try:
        dataset = data.load(config.data, "train")
    except UserError as error:
        if "is not prepared" not in str(error):
            raise
        pytest.skip(str(error))
    trainer = build.trainer(config, dataset)
    told = condition.build(trainer.model.network, dataset, config.data.augment)
    is_told = path.stem in ("digits_conditional", "digits_guided")
    assert (told != condition.Condition()) == is_told
    assert len(make_batch(dataset, told, config, 0).x) == config.train.batch_size
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
    (path,) = [path for path in EXPERIMENTS if path.stem == name]
    config = cli.read_config([f"--config={path}"])
    assert getattr(getattr(config, block[0]), block[1])["name"] == value
