"""Ways to sample that a command can ask for, and those that it cannot."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

import runs
from vdm import samplers, sde
from vdm.run import cli, data, evaluate, sample, train, trained
from vdm.run.config import EvaluateConfig, SampleConfig
from vdm.run.data.condition import Condition
from vdm.run.errors import UserError
from vdm.run.training import build, checks

pytestmark = pytest.mark.float32


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The digits with and without their class, trained for a few steps."""
    network = {**runs.MLP, "optional_cond": True}
    config = runs.images(network, num_classes=10, cond_dropout=0.2, num_steps=40)
    # Far enough for the class to make a difference.
    optimizer = dataclasses.replace(config.optimizer, learning_rate=0.03, warmup_steps=0)
    config = dataclasses.replace(config, optimizer=optimizer)
    workdir = tmp_path_factory.mktemp("guided")
    train.train(config, workdir)
    return workdir


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("ancestral", samplers.ancestral()),
        ("ddim:eta=0.5", samplers.ddim(0.5)),
        ("heun:churn=0.2,churn_max=3", samplers.heun(churn=0.2, churn_max=3.0)),
        ("dpmpp_2m", samplers.dpmpp_2m()),
        ("exponential:noise_level=0.3", sde.exponential(0.3)),
        ("euler_maruyama", sde.euler_maruyama()),
    ],
)
def test_a_name_and_its_arguments_are_a_sampler(text, value):
    assert checks.sampler(text) == value


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dpmpp2m", "unknown sample.sampler 'dpmpp2m'.*'dpmpp_2m'"),
        ("ddim:eta=2", r"sample.sampler \(ddim\): eta must be between 0 .* got 2.0"),
        ("ddim:et=1", "unknown argument of sample.sampler ddim 'et'.*'eta'"),
        ("ddim:eta", "eta must be a number: got ''"),
        ("ancestral:eta=1", "sample.sampler 'ancestral' takes no arguments: got 'eta'"),
        ("heun:churn=0.1,churn=0.2", "sample.sampler 'heun:churn=.*: churn is given twice"),
        ("ddim:name=1", "sample.sampler 'ddim:name=1': name is given twice"),
    ],
)
def test_what_is_no_sampler_is_named(text, message):
    with pytest.raises(UserError, match=message):
        checks.sampler(text)


def test_a_guided_model_has_an_unconditional_bound(workdir, tmp_path, monkeypatch):
    run = trained.load(shutil.copytree(workdir, tmp_path, dirs_exist_ok=True))
    settings = EvaluateConfig(levels_per_example=2)
    load = data.load
    monkeypatch.setattr(data, "load", lambda *args: load(*args).subset(np.arange(6)))
    given = evaluate.measure(run, "test", settings, tmp_path)
    without = dataclasses.replace(settings, unconditional=True)
    assert "unconditional" not in json.loads((tmp_path / "evaluation.json").read_text())
    left_out = evaluate.measure(run, "test", without, tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["unconditional"] is True
    # Scores are among those of their kind.
    some = data.load(run.config.data, "test")
    np.savez(tmp_path / "x.npz", x=some.x, labels=some.labels)
    out = tmp_path / "scores.npz"
    words = ["score", str(tmp_path / "x.npz"), f"--workdir={tmp_path}", f"--out={out}"]
    for more, ranked in (["--unconditional"], True), ([], False):
        assert cli.main([*words, *more]) == 0
        assert ("rank_test" in np.load(out)) == ranked
        same = np.allclose(np.load(out)["bpd"].mean(), left_out.headline.bpd.mean, rtol=1e-5)
        assert same == ranked
    # Training says by the number −1 that there is no class.
    monkeypatch.setattr(Condition, "of", lambda self, size, *_: np.full(size, -1, np.int32))
    dropped = evaluate.measure(run, "test", settings, tmp_path)
    assert left_out.headline.bpd.mean == pytest.approx(dropped.headline.bpd.mean, rel=1e-6)
    assert abs(left_out.headline.bpd.mean - given.headline.bpd.mean) > 1e-3


@pytest.mark.usefixtures("unchecked")
def test_a_model_that_always_has_its_class_has_no_unconditional_bound(tmp_path, capsys):
    workdir = runs.copy_of("points", tmp_path)
    capsys.readouterr()
    assert cli.main(["evaluate", f"--workdir={workdir}", "--unconditional"]) == 2
    error = capsys.readouterr().err
    assert "trained with and without its condition" in error and error.count("\n") == 1


def draw(workdir, *arguments):
    out = workdir / "x.npy"
    assert cli.main(["sample", f"--workdir={workdir}", "--num=7", f"--out={out}", *arguments]) == 0
    return np.load(out)


def test_every_option_makes_a_difference(workdir):
    plain = draw(workdir)
    assert plain.shape == (7, 8, 8, 1) and plain.min() >= 0 and plain.max() <= 16
    for option in (
        "--sampler=dpmpp_2m",
        "--sampler=ddim:eta=0.5",
        "--grid=edm",
        "--final=draw",
        "--guidance=3",
        "--guidance=0",
        "--clip_denoised",
        "--steps=5",
        "--seed=1",
        f"--seed={2**32 - 1}",
    ):
        assert np.any(draw(workdir, option) != plain), option
    np.testing.assert_array_equal(draw(workdir, "--guidance=1", "--grid=time"), plain)
    np.testing.assert_array_equal(draw(workdir, "--batch_size=3"), plain)
    # Sample i has class i but where one is asked for.
    threes = draw(workdir, "--label=3")
    np.testing.assert_array_equal(threes[3], plain[3])
    assert all(np.any(threes[i] != plain[i]) for i in (0, 1, 2, 4, 5, 6))
    run = trained.load(workdir)
    np.testing.assert_array_equal(run.sample(7, np.full(7, 3), key=0), threes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sampler=anestral"], "unknown --sampler 'anestral'.*'ancestral'"),
        (["--grid=lamda"], "unknown --grid 'lamda'.*'lambda'"),
        (["--final=mean"], "unknown --final 'mean'"),
        (["--steps=0"], "--steps must be at least 1: got 0"),
        (["--num=0"], "--num must be at least 1: got 0"),
        (["--guidance=nan"], "--guidance must be finite"),
    ],
)
def test_what_cannot_be_sampled_is_one_line(workdir, arguments, message, capsys):
    assert cli.main(["sample", f"--workdir={workdir}", *arguments]) == cli.EXIT_USER_ERROR
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("vdm: ")]
    assert len(lines) == 1 and re.search(message, lines[0]), error


def test_a_model_is_not_guided_or_clipped_without_what_that_takes():
    model = build.model(runs.points())
    for settings, message in (
        ({"guidance": 2.0}, "guidance=2.0 needs a model .*train.cond_dropout above 0"),
        ({"clip_denoised": True}, "clip_denoised is for integer data"),
    ):
        with pytest.raises(UserError, match=message):
            checks.check_sampling(model, dataclasses.replace(SampleConfig(), **settings))


def test_a_grid_that_cannot_be_drawn_does_not_end_a_training(tmp_path, monkeypatch, capsys):
    def nothing(*args):
        raise UserError("samples are not finite")

    monkeypatch.setattr(sample, "write", nothing)
    state = train.train(runs.images(sample_every=1), tmp_path / "run")
    assert int(state.step) == 3
    assert capsys.readouterr().err.count("no grid of samples at step") == 3


def test_guidance_far_beyond_use_is_said(workdir, tmp_path, capsys):
    command = ["sample", f"--workdir={workdir}", "--num=1", f"--out={tmp_path / 'x.npy'}"]
    for guidance, said in ((100, True), (4, False)):
        assert cli.main([*command, f"--guidance={guidance}"]) == 0
        assert ("far beyond what is usual" in capsys.readouterr().err) == said
