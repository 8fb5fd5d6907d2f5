"""What λ_max the decoder costs, against a sum over the levels and the methods' constants."""

import numpy as np
import pytest
from scipy import integrate, stats

import runs
from vdm import likelihoods, networks, schedules
from vdm.model import VDM
from vdm.run import cli
from vdm.run.training import advice


def model(levels, log_snr_max, schedule=schedules.linear):
    return VDM(schedule(log_snr_max, -6.0), networks.MLP(), likelihoods.discretised(levels))


def by_quadrature(levels, log_snr_max):
    """E[−log₂ p(x|z₀)] by scipy, each level's posterior normalised over all of them."""
    means = (2 * np.arange(levels) + 1) / levels - 1
    noise = np.exp(-0.5 * log_snr_max)

    def bits(e, level):
        log_p = -0.5 * ((means[level] + noise * e - means) / noise) ** 2
        return stats.norm.pdf(e) * (np.logaddexp.reduce(log_p) - log_p[level]) / np.log(2)

    return np.mean([integrate.quad(bits, -8, 8, (k,), limit=200)[0] for k in range(levels)])


@pytest.mark.parametrize(("levels", "log_snr_max"), [(17, 5.0), (8, 3.0), (2, 0.5)])
def test_the_decoders_cost_is_the_mean_over_its_levels(levels, log_snr_max):
    expected = by_quadrature(levels, log_snr_max)
    assert advice.decoder_cost(model(levels, log_snr_max), log_snr_max) == pytest.approx(
        expected, rel=0.02
    )


def test_256_levels_cost_what_an_even_lattice_of_them_does():
    # A level with neighbours on both sides: the entropy of a normal over a lattice of its bins.
    noise = np.exp(-4.0) / (2 / 256)
    expected = 0.5 * np.log2(2 * np.pi * np.e * noise**2)
    assert advice.decoder_cost(model(256, 8.0), 8.0) == pytest.approx(expected, abs=0.05)
    assert advice.decoder_cost(model(256, 13.3), 13.3) < 0.012


@pytest.mark.parametrize("schedule", [schedules.linear, schedules.learned_linear])
def test_only_an_end_that_costs_much_is_spoken_of(schedule):
    assert advice.advice(model(256, 13.3, schedule)) is None
    assert advice.advice(model(17, 8.0, schedule)) is None
    said = advice.advice(model(256, 8.0, schedule))
    assert "256 levels" in said and "λ_max = 8" in said and "log_snr_max = 13.3" in said


def test_training_says_it_once(tmp_path, capsys):
    config = runs.write_config_file(tmp_path / "config.py", runs.images())
    np.save(tmp_path / "x.npy", np.zeros((40, 4, 4, 1), np.uint8))
    own = [f"--config.data.path={tmp_path / 'x.npy'}", "--config.data.name=arrays"]
    own += ["--config.model.likelihood.levels=256", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(["train", f"--config={config}", *own]) == 0
    assert capsys.readouterr().err.count("the decoder costs") == 1
    assert cli.main(["train", f"--workdir={tmp_path / 'run'}"]) == 0
    assert "the decoder costs" not in capsys.readouterr().err
