"""Real data in units of their own: standardised, refused, or said."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.datasets import load_wine
from sklearn.mixture import GaussianMixture

import runs
from vdm import likelihoods, losses
from vdm.run import cli, config as configs
from vdm.run.config import DataConfig
from vdm.run.data.dataset import held_out
from vdm.run.errors import UserError
from vdm.run.training import parts, scale

pytestmark = pytest.mark.float32
RNG = np.random.default_rng(0)
TABLE = RNG.normal([1000.0, -3.0, 0.02], [50.0, 2.0, 1e-3], (300, 3)).astype(np.float32)


def config_of(path, standardise="none", likelihood=None, **train):
    config = runs.points(**train)
    model = dataclasses.replace(config.model, likelihood=likelihood or config.model.likelihood)
    where = DataConfig("arrays", str(path), standardise=standardise)
    return dataclasses.replace(config, data=where, model=model)


def resolved(path, standardise, likelihood=None):
    return parts.prepare(config_of(path, standardise, likelihood)).trainer.config.model.likelihood


def test_mean_and_std_are_those_of_what_is_trained_on(tmp_path):
    np.save(tmp_path / "x.npy", TABLE)
    mine = TABLE[held_out(300, "train")].astype(np.float64)
    block = resolved(tmp_path / "x.npy", "per_feature")
    np.testing.assert_allclose(block["mean"], mine.mean(0), rtol=1e-9)
    np.testing.assert_allclose(block["std"], mine.std(0), rtol=1e-9)
    assert resolved(tmp_path / "x.npy", "auto") == block
    block = resolved(tmp_path / "x.npy", "all")
    np.testing.assert_allclose([block["mean"], block["std"]], [mine.mean(), mine.std()], rtol=1e-9)


def test_auto_takes_one_pair_for_fields(tmp_path):
    np.save(tmp_path / "x.npy", RNG.normal(5.0, 3.0, (60, 4, 4, 2)))
    config = config_of(tmp_path / "x.npy", "auto", batch_size=10)
    block = parts.prepare(config).trainer.config.model.likelihood
    assert block["mean"] == pytest.approx(5.0, abs=0.5)
    assert block["std"] == pytest.approx(3.0, abs=0.3)


def test_a_constant_column_keeps_its_unit(tmp_path):
    x = TABLE.copy()
    x[:, 1] = 0.7
    np.save(tmp_path / "x.npy", x)
    block = resolved(tmp_path / "x.npy", "per_feature")
    assert block["std"][1] == 1.0 and block["mean"][1] == pytest.approx(0.7)


def test_bits_and_samples_are_in_the_users_unit(tmp_path, capsys):
    """The same training on data that were standardised by hand, and by the config."""
    mine = TABLE[held_out(300, "train")].astype(np.float64)
    mean, std = mine.mean(0), mine.std(0)
    np.save(tmp_path / "own.npy", TABLE)
    np.save(tmp_path / "hand.npy", ((TABLE - mean) / std).astype(np.float32))
    bits, samples = {}, {}
    for name, standardise in (("own", "per_feature"), ("hand", "none")):
        path, run = tmp_path / f"{name}.npy", tmp_path / name
        file = runs.write_config_file(tmp_path / "c.py", config_of(path, standardise))
        command = ["train", f"--config={file}", f"--workdir={run}"]
        assert cli.main(command) == 0
        # It resumes, although the run's config now has mean and std.
        assert cli.main([*command, "--config.train.num_steps=6"]) == 0
        assert cli.main(["train", f"--workdir={run}"]) == 0
        assert cli.main(["evaluate", f"--workdir={run}"]) == 0
        out = run / "samples.npy"
        assert cli.main(["sample", f"--workdir={run}", "--num=9", f"--out={out}"]) == 0
        kept, samples[name] = np.load(run / "evaluation_test.npz"), np.load(out)
        bits[name] = kept["total_inf"]
        assert kept["error_inf"].shape == kept["id"].shape == (30,)
    difference = np.log2(std).mean()
    assert abs(difference) > 1
    np.testing.assert_allclose(bits["own"], bits["hand"] + difference, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose((samples["own"] - mean) / std, samples["hand"], atol=1e-2)
    assert "x is 300 examples [3] of float32" in capsys.readouterr().err


def test_what_cannot_be_meant_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", TABLE)
    own = {"name": "gaussian", "scale": 0.02, "mean": 3.0}
    with pytest.raises(UserError, match=r"likelihood.mean is 3, but data.standardise='all' finds"):
        parts.prepare(config_of(tmp_path / "x.npy", "all", own))
    config = runs.images()
    data = dataclasses.replace(config.data, standardise="all")
    with pytest.raises(UserError, match="'all' is for real numbers: digits:1 holds uint8"):
        parts.prepare(dataclasses.replace(config, data=data))


def test_data_far_from_the_process_are_refused_and_leave_nothing(tmp_path, capsys):
    np.save(tmp_path / "x.npy", load_wine().data)
    file = runs.write_config_file(tmp_path / "c.py", config_of(tmp_path / "x.npy"))
    assert cli.main(["train", f"--config={file}", f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Use data.standardise=auto" in error
    assert not (tmp_path / "run").exists()


def test_structure_that_float32_loses_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", 1.7e9 + 60 * RNG.normal(size=(400, 2)))
    own = {"name": "gaussian", "scale": 0.018, "mean": 1.7e9, "std": 60.0}
    with pytest.raises(UserError, match=r"float32 moves numbers .* times the scale"):
        parts.prepare(config_of(tmp_path / "x.npy", likelihood=own))
    np.save(tmp_path / "near.npy", 60 * RNG.normal(size=(400, 2)))
    parts.prepare(config_of(tmp_path / "near.npy", likelihood={**own, "mean": 0.0}))


def test_a_constant_loses_nothing_and_a_little_of_much_is_lost(tmp_path):
    x = np.stack([np.full(400, 1e8 + 0.1), RNG.normal(size=400)], axis=1)
    np.save(tmp_path / "constant.npy", x)
    parts.prepare(config_of(tmp_path / "constant.npy", "auto"))
    x[:, 0] = 1000 + 5e-5 * RNG.normal(size=400)
    np.save(tmp_path / "little.npy", x)
    with pytest.raises(UserError, match="float32 moves numbers"):
        parts.prepare(config_of(tmp_path / "little.npy", "auto"))


def test_the_wrong_number_of_means_is_one_line(tmp_path):
    np.save(tmp_path / "three.npy", TABLE)
    own = {"name": "gaussian", "scale": 0.02, "mean": (0.0, 1.0)}
    with pytest.raises(UserError, match="the model does not fit"):
        parts.prepare(config_of(tmp_path / "three.npy", likelihood=own))


def test_the_likelihood_takes_the_mean_off_before_it_rounds():
    y = RNG.normal(size=(50, 2))
    encoded = likelihoods.gaussian(0.018, mean=1.7e9, std=60.0).encode(1.7e9 + 60 * y)
    np.testing.assert_allclose(encoded, y, atol=1e-6)


@pytest.mark.parametrize(("log_snr_min", "square"), [(-2.0, 9.0), (-5.0, 0.2)])
def test_the_cost_of_the_noisy_end_is_the_prior_term(log_snr_min, square):
    x = jnp.full((1, 1), math.sqrt(square))
    nats = losses.prior_kl(x, jnp.asarray(log_snr_min))
    assert scale.prior_cost(log_snr_min, square) == pytest.approx(
        float(nats[0]) / math.log(2), rel=1e-5
    )


@pytest.mark.parametrize(("log_snr_max", "width"), [(8.0, 0.05), (6.0, 0.02)])
def test_the_cost_of_the_clean_end_is_a_divergence_of_two_normals(log_snr_max, width):
    noise = stats.norm(0, math.exp(-0.5 * log_snr_max))
    other = stats.norm(0, width)

    def integrand(x):
        return noise.pdf(x) * (noise.logpdf(x) - other.logpdf(x))

    far = 12 * noise.std()
    nats, _ = integrate.quad(integrand, -far, far, epsabs=1e-12)
    assert scale.decoder_cost(log_snr_max, width) == pytest.approx(nats / math.log(2), rel=1e-6)


def test_a_scale_without_measure_costs_without_bound():
    assert scale.decoder_cost(8.0, 1e-200) == np.inf
    assert scale.decoder_cost(8.0, math.exp(-4)) == pytest.approx(0, abs=1e-12)


def test_costs_are_said_before_training(tmp_path):
    np.save(tmp_path / "small.npy", (0.01 * RNG.normal(size=(300, 2))).astype(np.float32))
    likelihood = {"name": "gaussian", "scale": 0.1}
    made = parts.prepare(config_of(tmp_path / "small.npy", likelihood=likelihood))
    said = scale.advice(made.trainer.model, made.dataset)
    assert len(said) == 2
    assert "have the mean square" in said[0] and "data.standardise=auto" in said[0]
    assert "log_snr_max = 4.6 it costs nothing" in said[1]
    np.save(tmp_path / "x.npy", RNG.normal(size=(300, 2)).astype(np.float32))
    made = parts.prepare(config_of(tmp_path / "x.npy"))
    assert scale.advice(made.trainer.model, made.dataset) == ()


@pytest.mark.long
def test_the_density_of_a_table_compares_with_a_mixture_of_normals(tmp_path):
    """scikit-learn's wine: the same split, the same unit."""
    x = load_wine().data
    np.save(tmp_path / "x.npy", x)
    config = config_of(tmp_path / "x.npy", "auto", num_steps=3000, batch_size=64, log_every=500)
    network = {**config.model.network, "width": 64, "num_blocks": 2}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, network=network))
    file = runs.write_config_file(tmp_path / "c.py", config)
    assert cli.main(["train", f"--config={file}", f"--workdir={tmp_path / 'run'}"]) == 0
    evaluate = ["evaluate", f"--workdir={tmp_path / 'run'}", "--levels_per_example=64"]
    assert cli.main(evaluate) == 0
    ours = json.loads((tmp_path / "run/evaluation.json").read_text())["bpd"]
    train, test = (x[held_out(len(x), split)] for split in ("train", "test"))
    mean, std = train.mean(0), train.std(0)
    mixture = GaussianMixture(1, random_state=0).fit((train - mean) / std)
    nats = np.log(std).sum() - mixture.score_samples((test - mean) / std)
    theirs = nats.mean() / (13 * math.log(2))
    assert ours["mean"] == pytest.approx(theirs, abs=3 * ours["sem"])
    assert configs.load(tmp_path / "run").model.likelihood["mean"] == pytest.approx(
        tuple(mean), rel=1e-6
    )
