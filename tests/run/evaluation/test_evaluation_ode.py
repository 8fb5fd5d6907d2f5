"""Evaluation by the ODE: the density of data, numbers of draws, what is refused."""

import dataclasses
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from exact_run import with_law
from vdm.ode import adaptive, hutchinson
from vdm.run import cli, data, evaluate, train, trained
from vdm.run.config import EvaluateConfig
from vdm.run.errors import UserError
from vdm.run.evaluation import files, ode

pytestmark = pytest.mark.float32


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A digits run of a few steps, and its workdir."""
    workdir = runs.copy_of("classes", tmp_path_factory.mktemp("digits"))
    return trained.load(workdir), workdir


def few(run, n, monkeypatch):
    """The run with the first n digits of each split."""
    load = data.load
    monkeypatch.setattr(data, "load", lambda *args: load(*args).subset(np.arange(n)))
    return run


def test_the_exact_denoiser_gives_the_density_of_every_example(tmp_path, monkeypatch):
    run = few(with_law("schedule"), 200, monkeypatch)
    settings = dataclasses.replace(
        run.config.evaluate, bound="ode", divergence="exact", tolerance=1e-5
    )
    record = evaluate.evaluate(run, "test", settings, tmp_path)
    x = data.load(run.config.data, "test").x.astype(np.float64)
    means = np.array([[-1.0, -0.5], [1.0, 0.2], [1.5, 1.8]])
    widths, weights = np.array([0.5, 0.25, 0.15]), np.array([0.6, 0.3, 0.1])
    squares = ((x[:, None] - means) ** 2).sum(-1)
    density = (weights / (2 * np.pi * widths**2) * np.exp(-squares / (2 * widths**2))).sum(-1)
    kept = np.load(tmp_path / "evaluation_test.npz")["ode_1"]
    # Of this data with noise of e^{-6}, and from a prior that is met but for e^{-12}.
    np.testing.assert_allclose(kept, -np.log2(density) / 2, atol=2e-3)
    assert (record["bound"], record["dequantisation"], record["num_samples"]) == ("ode", None, 1)
    assert record["bpd"]["mean"] == pytest.approx(kept.mean()) and record["bpd"]["n"] == 200
    assert record["nfe"]["max"] >= record["nfe"]["mean"] > 20
    assert record["tolerance"] == 1e-5 and "ode_steps" not in record


class Rough(nn.Module):
    """A denoiser whose answer changes within a millionth of its only parameter."""

    num_classes: int | None = None

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        return 0.1 * jnp.sin(self.param("gain", nn.initializers.constant(1e6), ()) * z)


def test_an_answer_that_rounding_decides_is_said(tmp_path, monkeypatch, capsys):
    smooth = few(with_law("schedule"), 20, monkeypatch)
    settings = dataclasses.replace(smooth.config.evaluate, bound="ode", ode_steps=8)
    for network, decided in ((smooth.model.network, False), (Rough(), True)):
        model = dataclasses.replace(smooth.model, network=network)
        params = model.init(jax.random.key(0), jnp.zeros((1, 2)))
        run = smooth._replace(model=model, params=params)
        result = evaluate.measure(run, "test", settings, tmp_path).headline
        assert result.by_rounding == decided
        said = "rounding decides this answer: 8 examples move by" in capsys.readouterr().err
        assert said == decided
        record = json.loads((tmp_path / "evaluation.json").read_text())
        assert (record["moved"] > record["bpd"]["sem"]) == decided


def test_of_more_draws_the_bound_is_lower_and_equal_draws_give_themselves():
    rng = np.random.default_rng(0)
    weights = rng.normal(-40.0, 3.0, (7, 6))
    nothing = np.zeros(7)
    drawn = ode.Weights(weights, nothing, nothing, nothing)
    bounds = {k: ode.bound(drawn, k, 5) for k in (1, 2, 3, 6)}
    np.testing.assert_allclose(bounds[1], -weights.mean(1) / 5 / np.log(2), rtol=1e-12)
    by_hand = -np.log(np.exp(weights + 40).reshape(7, 2, 3).mean(2)).mean(1) + 40
    np.testing.assert_allclose(bounds[3], by_hand / 5 / np.log(2), rtol=1e-12)
    for fewer, more in ((1, 2), (2, 6), (1, 3), (3, 6)):
        assert np.all(bounds[more] < bounds[fewer])
    same = drawn._replace(log_weights=np.full((7, 6), -40.0))
    np.testing.assert_allclose(ode.bound(same, 6, 5), 40 / 5 / np.log(2), rtol=1e-12)
    # What is left of the draws after whole groups is not looked at.
    np.testing.assert_array_equal(
        ode.bound(drawn, 4, 5), ode.bound(drawn._replace(log_weights=weights[:, :4]), 4, 5)
    )


def test_probes_are_off_by_their_standard_error(tmp_path, monkeypatch):
    run = few(with_law("schedule"), 300, monkeypatch)
    settings = dataclasses.replace(run.config.evaluate, bound="ode", ode_steps=40)
    bits, sem = {}, None
    for kind in ("exact", "hutchinson"):
        asked = dataclasses.replace(settings, divergence=kind, num_probes=3)
        sem = evaluate.evaluate(run, "test", asked, tmp_path).get("probes_sem")
        bits[kind] = np.load(tmp_path / "evaluation_test.npz")["ode_1"]
    apart = bits["hutchinson"] - bits["exact"]
    assert abs(apart.mean()) < 5 * sem
    # Of an example the squared error has the mean of the squared standard error; their sums
    # over the examples agree within five standard errors of the first.
    squares = apart**2
    assert abs(squares.sum() - (300 * sem) ** 2) < 5 * squares.std() * np.sqrt(300)


def test_a_table_of_bounds_in_one_command(digits, tmp_path, monkeypatch, capsys):
    few(None, 12, monkeypatch)
    workdir = digits[1]
    command = ["evaluate", f"--workdir={workdir}", "--bound=vlb,ode", "--num_steps=5,inf"]
    more = ["--clip_denoised", "--dequantisation=uniform,truncated_normal", "--num_samples=1,3"]
    assert cli.main([*command, *more, "--ode_steps=4", "--num_probes=2"]) == 0
    record = json.loads((workdir / "evaluation.json").read_text())
    evaluation = files.read(workdir)
    assert files.to_json(evaluation) == record
    # Every result of the split is the mean of what is kept of its examples.
    ours = [result for result in evaluation.results if result.origin.split == "test"]
    assert all(files.of_examples(workdir, result) is not None for result in ours)
    columns = [name for result in ours for name in files.columns(result)]
    extra = ("id", "label", "total_", "error_")
    kept = list(np.load(workdir / "evaluation_test.npz"))
    assert [name for name in kept if not name.startswith(extra)] == columns
    results = record["results"]
    assert (record["bound"], record["num_steps"]) == ("vlb", "inf")
    assert "clip_denoised" not in record and "profile" in record
    vlb = [r for r in results if r["bound"] == "vlb" and r["split"] == "test"]
    assert [(r["num_steps"], r.get("clip_denoised", False)) for r in vlb] == [
        (t, clip) for clip in (False, True) for t in (5, "inf")
    ]
    for plain, clipped in zip(vlb[:2], vlb[2:], strict=True):
        assert clipped["terms"]["diffusion"]["mean"] < plain["terms"]["diffusion"]["mean"]
        assert clipped["terms"]["prior"] == plain["terms"]["prior"]
    # λ is linear in t here, so T = 5 has a prediction.
    assert vlb[0]["diffusion_by_steps_law"] > vlb[1]["terms"]["diffusion"]["mean"]
    total = vlb[1]["profile"]["information"]["mean"][-1]
    assert total == pytest.approx(vlb[1]["terms"]["diffusion"]["mean"], rel=1e-9)
    assert vlb[1]["i_mmse"]["between"] == total
    flows = [r for r in results if r["bound"] == "ode"]
    assert [(r["dequantisation"], r["num_samples"]) for r in flows] == [
        (kind, k) for kind in ("uniform", "truncated_normal") for k in (1, 3)
    ]
    for one, three in (flows[:2], flows[2:]):
        assert three["bpd"]["mean"] < one["bpd"]["mean"]
        assert one["ode_steps"] == 4 and one["num_probes"] == 2 and one["probes_sem"] > 0
        # Six evaluations of a step, and the first.
        assert one["nfe"] == {"mean": 25.0, "max": 25.0}
    text = capsys.readouterr().out
    for word in (
        "variational bound",
        "T-law",
        "inf clipped",
        "probability-flow ODE",
        "profile over",
    ):
        assert word in text


def test_the_ode_does_not_depend_on_the_batch(digits, tmp_path, monkeypatch):
    run = few(digits[0], 11, monkeypatch)
    found = []
    for size in (11, 4):
        settings = dataclasses.replace(
            run.config.evaluate, bound="ode", ode_steps=3, batch_size=size, num_samples="2"
        )
        evaluate.evaluate(run, "test", settings, tmp_path)
        found.append(np.load(tmp_path / "evaluation_test.npz")["ode_truncated_normal_2"])
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert len(set(found[0])) == 11


def test_a_solve_that_does_not_end_is_said(digits, tmp_path, monkeypatch):
    run = few(digits[0], 3, monkeypatch)
    monkeypatch.setattr("vdm.ode.integrator.MAX_STEPS", 2)
    settings = dataclasses.replace(run.config.evaluate, bound="ode")
    with pytest.raises(
        UserError, match=r"did not finish .*: 3 of 3 rows, the first one of example 0"
    ):
        evaluate.evaluate(run, "test", settings, tmp_path)
    assert not list(tmp_path.iterdir())
    # What was measured before it is kept.

    def unfinished(*args):
        raise UserError("the ODE solver did not finish")

    monkeypatch.setattr(evaluate, "_ode", unfinished)
    both = dataclasses.replace(settings, bound="vlb,ode")
    with pytest.raises(UserError, match="the ODE solver did not finish"):
        evaluate.evaluate(run, "train", both, tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["bound"] == "vlb"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (hutchinson(1), adaptive(1e-4, 1e-4))),
        ({"num_probes": 3, "ode_steps": 9}, (hutchinson(3), 9)),
        ({"divergence": "exact", "tolerance": 1e-3}, ("exact", adaptive(1e-3, 1e-3))),
    ],
)
def test_settings_are_the_values_of_a_solve(settings, expected):
    assert ode.options(EvaluateConfig(**settings)) == expected


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bound=vbl"], "unknown --bound 'vbl'.*'vlb'"),
        (["--bound=ode", "--num_samples=0"], "num_samples must be whole numbers .*: got '0'"),
        (
            ["--bound=ode", "--dequantisation=normal"],
            "unknown --dequantisation 'normal'.*truncated",
        ),
        (["--bound=ode", "--divergence=exakt"], "unknown --divergence 'exakt'.*'exact'"),
        (["--bound=ode", "--tolerance=0"], "--tolerance must be above 0: got 0.0"),
        (["--bound=ode", "--ode_steps=-1"], "--ode_steps must be at least 0: got -1"),
        (["--bound=ode", "--num_probes=0"], "--num_probes must be at least 1"),
        (["--num_samples=3"], "--num_samples needs --bound=ode: got --bound=vlb"),
        (["--bound=ode", "--clip_denoised"], "--clip_denoised needs --bound=vlb"),
        (
            ["--bound=ode", "--divergence=exact", "--num_probes=2"],
            "--num_probes is for --divergence=hutchinson",
        ),
        (["--bound=ode", "--ode_steps=9", "--tolerance=1"], "--tolerance is for adaptive steps"),
    ],
)
def test_what_cannot_be_measured_is_one_line(digits, arguments, message, capsys):
    assert cli.main(["evaluate", f"--workdir={digits[1]}", *arguments]) == cli.EXIT_USER_ERROR
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("vdm: ")]
    assert len(lines) == 1 and re.search(message, lines[0]), error
    assert "Traceback" not in error


def test_an_exact_divergence_of_many_dimensions_is_refused(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(30, 257)))
    config = dataclasses.replace(
        runs.points(num_steps=1, batch_size=4),
        data=dataclasses.replace(runs.points().data, name="arrays", path=str(tmp_path / "x.npy")),
    )
    train.train(config, tmp_path / "run")
    command = ["evaluate", f"--workdir={tmp_path / 'run'}", "--bound=ode", "--divergence=exact"]
    assert cli.main(command) == cli.EXIT_USER_ERROR
    assert "limited to 256 dimensions: got 257" in capsys.readouterr().err
    clip = ["evaluate", f"--workdir={tmp_path / 'run'}", "--clip_denoised"]
    assert cli.main(clip) == cli.EXIT_USER_ERROR
    assert "clip_denoised is for integer data" in capsys.readouterr().err
