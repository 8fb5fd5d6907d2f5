"""Bounds of fitted chains and of whole paths: against closed forms, and each other."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import runs
from exact_run import MESH
from vdm import VDM, few_steps, laws, likelihoods, schedules
from vdm.run import cli, data, evaluate, trained
from vdm.run.config import parse
from vdm.run.data.condition import Condition
from vdm.run.errors import UserError
from vdm.run.evaluation import files, paths
from vdm.run.scoring import ranks
from vdm.run.scoring.scores import Scores
from vdm.run.workdir import chains

DEVIATIONS = np.array([0.9, 2.5])


class ExactGaussian(nn.Module):
    """E[ε|z] for x ~ N(0, s²)."""

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        a2, s2 = jax.nn.sigmoid(log_snr)[:, None], jax.nn.sigmoid(-log_snr)[:, None]
        return jnp.sqrt(s2) * z / (a2 * DEVIATIONS[None] ** 2 + s2)


def gaussian_run(end):
    """The exact denoiser of a Gaussian, for |λ| ≤ end; its "data" are a mixture: any x will do."""
    likelihood = likelihoods.gaussian(np.exp(-end / 2))
    model = VDM(schedules.linear(end, -end), ExactGaussian(), likelihood)
    params = {"schedule": {"ends": {}, "shape": {}}, "network": {}}
    config = runs.points()
    settings = dataclasses.replace(config.evaluate, batch_size=4096, levels_per_example=1)
    config = dataclasses.replace(config, evaluate=settings)
    law = laws.LAWS["schedule"]()
    return trained.Trained(config, model, MESH, params, 0, (2,), Condition(), "raw", law, ())


def keep(run, workdir, chain, variance):
    about = {"step": run.step, "kind": run.kind, "num_examples": 9}
    return chains.write(workdir, chain, variance, params=run.params, **about)


def measured(run, workdir, split="test", **settings):
    """The results of the split, and the numbers of every example."""
    settings = dataclasses.replace(run.config.evaluate, **settings)
    record = evaluate.evaluate(run, split, settings, workdir)
    results = [row for row in record["results"] if row["split"] == split]
    return results, dict(np.load(workdir / files.examples_file(split)))


def bits_of_normal(x, variance):
    """−log2 N(x; 0, variance) per dimension."""
    nats = 0.5 * (x**2 / variance + np.log(2 * np.pi * variance))
    return nats.mean(1) / np.log(2)


def test_with_the_exact_variance_the_bound_is_the_entropy_at_every_number_of_steps(tmp_path):
    end, numbers = 16.0, (1, 2, 5)
    run = gaussian_run(end)
    names = []
    for num_steps in numbers:
        # Any levels between the ends; Var[x|z] = 1/(1/s² + SNR).
        log_snrs = np.array([-end, *(-2.0, 0.5, 3.0, 9.0)[: num_steps - 1], end])
        table = 1.0 / (1.0 / DEVIATIONS**2 + np.exp(log_snrs[:-1, None]))
        chain = few_steps.Chain(log_snrs, few_steps.Table(table))
        names.append(keep(run, tmp_path, chain, "table").checksum.hex())
    asked = ",".join(f"{num_steps}:chain" for num_steps in numbers)
    results, kept = measured(run, tmp_path, num_steps=asked, num_paths=2)
    assert [(row["num_steps"], row["chain"]) for row in results] == [(t, "table") for t in numbers]
    assert [row["chain_checksum"] for row in results] == names
    assert all((tmp_path / chains.FOLDER / f"{name}.safetensors").exists() for name in names)
    exact = bits_of_normal(data.load(run.config.data, "test").x.astype(float), DEVIATIONS**2)
    for num_steps in numbers:
        apart = kept[f"total_{num_steps}_table_chain"] - exact
        assert abs(apart.mean()) < 4 * apart.std() / np.sqrt(len(apart)) + 1e-6
        # The chain is the exact posterior: every path has the weight p(x), up to what z_0 tells
        # beyond p(x|z_0), e^{−λ_max/2} x/s² standard deviations, and the rounding of float32.
        np.testing.assert_allclose(kept[f"paths_{num_steps}_table_chain"], exact, atol=5e-3)
        assert np.abs(kept[f"looser_{num_steps}_table_chain"]).max() < 5e-3


def test_paths_are_between_the_bound_and_the_density_of_the_chain(tmp_path):
    end, num_paths = 2.0, 30
    run = gaussian_run(end)
    results, kept = measured(run, tmp_path, num_steps="2", num_paths=num_paths)
    # The chain is linear: what it generates is Gaussian, with a variance from step to step.
    variance = np.ones(2)
    for t, s in ((-end, 0.0), (0.0, end)):
        (a_t, a_s), (s_t, s_s) = (1 / (1 + np.exp(sign * np.array([t, s]))) for sign in (-1, 1))
        kept_part = np.exp(t - s)
        x_hat = np.sqrt(a_t) * DEVIATIONS**2 / (a_t * DEVIATIONS**2 + s_t)
        slope = np.sqrt(a_s / a_t) * kept_part + np.sqrt(a_s) * (1 - kept_part) * x_hat
        variance = slope**2 * variance + (1 - kept_part) * s_s
    variance = variance * (1 + np.exp(-end)) + np.exp(-end)
    exact = bits_of_normal(data.load(run.config.data, "test").x.astype(float), variance)
    bound, looser = kept["paths_2"], kept["looser_2"]
    assert looser.min() >= 0 and looser.mean() > 0.1
    above = bound - exact
    assert above.mean() > -4 * above.std() / np.sqrt(len(above))
    assert above.mean() < 0.2 * looser.mean()
    # The VLB of other noise is that of the paths.
    apart = kept["total_2"] - (bound + looser)
    assert abs(apart.mean()) < 4 * apart.std() / np.sqrt(len(apart))
    (row,) = results
    assert row["paths"]["num_paths"] == num_paths and "chain" not in row
    for name, values in (("bpd", bound), ("looser", looser)):
        sem = values.std(ddof=1) / np.sqrt(len(values))
        found = row["paths"][name]
        assert found == pytest.approx({"mean": values.mean(), "sem": sem, "n": len(values)})


def test_the_bound_of_paths_is_that_of_their_mean_weight():
    weights = np.array([[1.0, 3.0, 8.0], [0.5, 0.5, 0.5]])
    found = paths.of_weights(np.log(weights), 4)
    bits = 4 * np.log(2)
    np.testing.assert_allclose(found.bpd, -np.log([4.0, 0.5]) / bits)
    np.testing.assert_allclose(found.looser, [(np.log(4) - np.log(24) / 3) / bits, 0.0], atol=1e-15)
    huge = paths.of_weights(np.array([[-5e4, -5e4 - 800]]), 1)
    np.testing.assert_allclose(huge.bpd, (5e4 + np.log(2)) / np.log(2), rtol=1e-12)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The shared run of images with two chains: even levels without v, and a table."""
    workdir = runs.copy_of("images", tmp_path_factory.mktemp("run"))
    run = trained.load(workdir)
    keep(run, workdir, few_steps.even(run.model, run.params, 4, clip_denoised=True), "none")
    log_snrs = np.asarray(few_steps.even(run.model, run.params, 3).log_snrs)
    table = few_steps.Table(np.full((3, 1, 1, 1), 0.1, np.float32))
    keep(run, workdir, few_steps.Chain(log_snrs, table, clip_denoised=True), "table")
    return run, workdir


@pytest.mark.float32
def test_even_levels_without_a_variance_are_the_steps_of_the_schedule(images):
    levels = {"levels_per_example": 12, "batch_size": 512}
    asked = {"num_steps": "4,4:chain", "num_paths": 2, "clip_denoised": True}
    results, kept = measured(*images, **asked, **levels)
    own, chain = "4_clipped", "4_none_chain_clipped"
    assert [row.get("chain") for row in results] == [None, None, "none"]
    assert [row.get("clip_denoised", False) for row in results] == [False, True, True]
    assert [row["levels_per_example"] for row in results] == [12, 12, 12]
    apart = kept[f"total_{own}"] - kept[f"total_{chain}"]
    assert abs(apart.mean()) < 4 * apart.std() / np.sqrt(len(apart)) and apart.std() > 0
    np.testing.assert_allclose(kept[f"prior_{own}"], kept[f"prior_{chain}"], rtol=1e-6)
    # The paths of the chain and of the schedule's own steps are the same.
    np.testing.assert_allclose(kept[f"paths_{own}"], kept[f"paths_{chain}"], rtol=1e-5)
    assert kept["paths_4"].mean() > kept[f"paths_{own}"].mean()
    # Three passes over all steps: their spread is not that of the steps among themselves.
    error = kept[f"error_{chain}"]
    assert error.shape == (297,) and 0 < np.sqrt(np.mean(error**2)) < kept[f"error_{own}"].mean()


@pytest.mark.float32
def test_every_step_is_taken_equally_often(images, monkeypatch):
    taken = []

    def vlb(self, params, key, x, cond=None, *, chain, noise_levels):
        step = jnp.ceil(noise_levels * chain.num_steps)  # as `VDM.vlb` says
        noise = jax.vmap(jax.random.uniform)(key)
        taken.append(noise_levels.shape)
        return step, noise, x.reshape(len(x), -1).mean(1).astype(float)

    monkeypatch.setattr(VDM, "vlb", vlb)
    run, workdir = images
    _, kept = measured(run, workdir, num_steps="3:chain", levels_per_example=7, batch_size=50)
    bits = 64 * np.log(2)
    np.testing.assert_allclose(bits * kept["prior_3_table_chain_clipped"], 2.0, rtol=1e-6)
    own = data.load(run.config.data, "test").x.reshape(297, -1).mean(1)
    np.testing.assert_allclose(bits * kept["diffusion_3_table_chain_clipped"], own, rtol=1e-5)
    # Six draws for each example, independent: their means have a sixth of the variance.
    noise = bits * kept["reconstruction_3_table_chain_clipped"]
    assert noise.var() == pytest.approx(1 / 72, rel=5 * np.sqrt(2 / 297))
    assert len(taken) == 1  # one program, for both splits


@pytest.mark.float32
def test_every_path_has_its_own_noise(images, monkeypatch):
    given = []

    def path_weights(self, params, key, x, cond=None, *, chain):
        return jax.vmap(jax.random.uniform)(key)

    of_weights = paths.of_weights
    monkeypatch.setattr(VDM, "path_weights", path_weights)
    monkeypatch.setattr(paths, "of_weights", lambda w, d: given.append(w) or of_weights(w, d))
    for seed in (0, 1):
        measured(*images, num_steps="3:chain", num_paths=5, seed=seed, levels_per_example=1)
    first, train, other, _ = given
    assert first.shape == (297, 5) and len(np.unique([first, other])) > 2 * 297 * 5 - 4
    np.testing.assert_array_equal(first, train)  # by the position, as all noise
    assert stats.kstest(first.ravel(), "uniform").pvalue > 1e-4
    # The levels of the bound have other noise: keys of the seed, the example and the level.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
    assert float(jax.random.uniform(key)) not in first


@pytest.mark.float32
def test_chains_and_paths_do_not_depend_on_the_batch_size(images):
    asked = {"num_steps": "3:chain,4", "num_paths": 3, "levels_per_example": 3}
    (_, one), (_, other) = (measured(*images, batch_size=size, **asked) for size in (512, 90))
    assert one.keys() == other.keys()
    for name in one.keys() - {"id", "label"}:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-6)


@pytest.mark.float32
def test_by_command_the_chain_is_a_row_beside_the_others(images, capfd):
    workdir = images[1]
    asked = "--num_steps=3:chain,3,inf --num_paths=4 --batch_size=512"
    assert cli.main(["evaluate", f"--workdir={workdir}", *asked.split()]) == 0
    said = capfd.readouterr().out
    assert "3 table chain clipped" in said and "4 paths" in said and "looser" in said
    record = json.loads((workdir / files.RESULT_FILE).read_text())
    assert record["num_steps"] == "inf" and "chain" not in record
    evaluation = files.read(workdir)
    assert files.to_json(evaluation) == record
    assert evaluation.headline.continuous and evaluation.headline.paths is None
    chain = [result for result in evaluation.results if result.chain is not None]
    assert [(r.origin.split, r.chain_name) for r in chain] == [
        ("test", "table chain"),
        ("train", "table chain"),
    ]
    for result in chain:
        assert result.clip_denoised and result.law is None and result.levels_per_example == 3
        assert files.of_examples(workdir, result).shape == (297,)
        assert result.paths.bpd.mean < result.bpd.mean and result.paths.looser.mean > 0


@pytest.mark.float32
def test_scores_are_not_ranked_among_the_numbers_of_a_chain(images):
    run, workdir = images
    settings, scores = run.config.evaluate, Scores(np.array([1.0]), np.array([0.1]), None)
    keep(run, workdir, few_steps.even(run.model, run.params, 2), "none")
    measured(run, workdir, num_steps="2:chain", levels_per_example=1)
    found, lines = ranks.of_splits(scores, run, settings, workdir)
    assert found == [] and [line.split("`")[0] for line in lines] == [
        "no ranks among test: ",
        "no ranks among train: ",
    ]
    _, kept = measured(run, workdir, num_steps="2:chain,inf", levels_per_example=1)
    found, lines = ranks.of_splits(scores, run, settings, workdir)
    assert lines == [] and [one.split for one in found] == ["test", "train"]
    np.testing.assert_allclose(found[0].bits, np.sort(kept["total_inf"]))


@pytest.mark.float32
def test_a_chain_that_is_not_there_is_an_error_before_the_work(images, tmp_path, monkeypatch):
    run, workdir = images
    monkeypatch.setattr(evaluate, "dataset_of", None)
    with pytest.raises(UserError, match=r"no chain of 7 steps.*vdm fit-chain"):
        measured(run, workdir, num_steps="7:chain")
    keep(run._replace(params={**run.params, "more": np.zeros(1)}), tmp_path, *chain_of(images))
    with pytest.raises(UserError, match=r"belongs to other parameters.*vdm fit-chain"):
        measured(run, tmp_path, num_steps="3:chain")


def chain_of(images):
    kept = chains.find(images[1], images[0].params, 3)
    return kept.chain, kept.variance


def test_a_number_of_steps_may_be_that_of_a_chain():
    assert parse.parse_num_steps("10:chain, inf,5,10,5 , 20:chain,010") == (
        (None, 5, 10),
        (10, 20),
    )
    for text in ("inf:chain", ":chain", "0:chain", "10:chains", "10:", "chain", "10:chain:chain"):
        with pytest.raises(UserError, match=r"num_steps must be whole numbers from 1 to .*chain"):
            parse.parse_num_steps(text)
