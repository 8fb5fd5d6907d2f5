"""Evaluation and sampling of a trained run: exact, per example, independent of the batch."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import runs
from vdm import VDM, likelihoods, schedules
from vdm.run import config as configs, data, evaluate, figures, sample, train, trained
from vdm.run.dataset import ids_checksum
from vdm.run.errors import UserError

pytestmark = pytest.mark.float32


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train.train(runs.images(num_classes=10), workdir)
    return trained.load(workdir), workdir


def test_evaluation_does_not_depend_on_the_batch_size(run, tmp_path):
    settings = run[0].config.evaluate
    means = []
    for batch_size in (64, 50):
        changed = dataclasses.replace(settings, batch_size=batch_size)
        record = evaluate.evaluate(run[0], "test", changed, tmp_path)
        means.append((record["bpd"]["mean"], record["bpd"]["sem"]))
    np.testing.assert_allclose(means[0], means[1], rtol=1e-6)


def test_the_record_says_what_was_measured(run):
    settings = dataclasses.replace(run[0].config.evaluate, num_steps="10, 100,inf")
    record = evaluate.evaluate(run[0], "test", settings, run[1])
    assert record == json.loads((run[1] / evaluate.RESULT_FILE).read_text())
    assert (record["bound"], record["num_steps"], record["split"]) == ("vlb", "inf", "test")
    assert (record["dataset"], record["step"], record["bpd"]["n"]) == ("digits", 3, 297)
    assert (record["dataset_version"], record["num_examples"]) == ("digits:1", 297)
    own = data.load(run[0].config.data, "test")
    subset = data.load(run[0].config.data, "train").subset(
        np.linspace(0, 1499, 297).round().astype(int)
    )
    checksums = [ids_checksum(dataset) for dataset in (own, subset) for _ in range(3)]
    assert [row["ids_checksum"] for row in record["results"]] == checksums
    rows = [(row["split"], row["num_steps"]) for row in record["results"]]
    assert rows == [(split, t) for split in ("test", "train") for t in (10, 100, "inf")]
    kept = np.load(run[1] / "evaluation_test.npz")
    total = sum(kept[f"{name}_inf"] for name in ("prior", "reconstruction", "diffusion"))
    assert total.shape == (297,) and total.dtype == np.float64
    assert record["bpd"]["mean"] == pytest.approx(total.mean(), rel=1e-12)
    assert record["bpd"]["sem"] == pytest.approx(total.std(ddof=1) / np.sqrt(297), rel=1e-12)
    terms = sum(record["terms"][name]["mean"] for name in record["terms"])
    assert record["bpd"]["mean"] == pytest.approx(terms, rel=1e-12)
    # Fewer steps, a looser bound.
    assert record["results"][0]["bpd"]["mean"] > record["results"][2]["bpd"]["mean"]


class ExactMixture(nn.Module):
    """E[ε|z] for the data set `mixture`, from its definition."""

    num_classes: int | None = None

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        means = jnp.array([[-1.0, -0.5], [1.0, 0.2], [1.5, 1.8]])
        widths, weights = jnp.array([0.5, 0.25, 0.15]), jnp.array([0.6, 0.3, 0.1])
        a2 = jax.nn.sigmoid(log_snr)[:, None]
        s2 = jax.nn.sigmoid(-log_snr)[:, None]
        variance = a2 * widths[None] ** 2 + s2
        gap = z[:, None] - jnp.sqrt(a2)[..., None] * means[None]
        log_w = jnp.log(weights)[None] - jnp.sum(gap**2, -1) / (2 * variance) - jnp.log(variance)
        w = jax.nn.softmax(log_w, -1)
        return jnp.sqrt(s2) * jnp.sum((w / variance)[..., None] * gap, 1)


def test_the_exact_denoiser_measures_the_entropy_of_the_data(tmp_path):
    # A wide range and p(x|z_0) as sharp as q(z_0|x): the bound meets −log p(x) on average.
    model = VDM(schedules.linear(12.0, -12.0), ExactMixture(), likelihoods.gaussian(np.exp(-6.0)))
    params = {"schedule": {"ends": {}, "shape": {}}, "network": {}}
    config = runs.points()
    settings = dataclasses.replace(config.evaluate, levels_per_example=64, batch_size=4096)
    record = evaluate.evaluate(
        trained.Trained(config, model, params, 0), "test", settings, tmp_path
    )
    x = data.load(config.data, "test").x.astype(np.float64)
    means = np.array([[-1.0, -0.5], [1.0, 0.2], [1.5, 1.8]])
    widths, weights = np.array([0.5, 0.25, 0.15]), np.array([0.6, 0.3, 0.1])
    squares = ((x[:, None] - means) ** 2).sum(-1)
    density = (weights / (2 * np.pi * widths**2) * np.exp(-squares / (2 * widths**2))).sum(-1)
    kept = np.load(tmp_path / "evaluation_test.npz")
    bits = sum(kept[f"{name}_inf"] for name in ("prior", "reconstruction", "diffusion"))
    difference = bits + np.log2(density) / 2
    # Five standard errors of the difference, which the gaps at ±12 are far below.
    assert abs(difference.mean()) < 5 * difference.std() / np.sqrt(len(x))
    assert record["bpd"]["sem"] < 0.05


def test_the_subset_of_the_training_split_is_as_large_as_the_test_split(run):
    record = evaluate.evaluate(run[0], "test", run[0].config.evaluate, run[1])
    assert [row["bpd"]["n"] for row in record["results"]] == [297, 297]


@pytest.mark.parametrize("text", ["0", "ten", "10,", "-5", "1.5", "²", "999999"])
def test_a_bad_number_of_steps_is_named(text):
    with pytest.raises(UserError, match="num_steps must be positive whole numbers"):
        configs.parse_num_steps(text)


def test_a_sample_depends_on_its_own_key_alone(run):
    settings = run[0].config.sample
    together = sample.sample(run[0], 7, dataclasses.replace(settings, batch_size=7))
    apart = sample.sample(run[0], 7, dataclasses.replace(settings, batch_size=3))
    assert together.shape == (7, 8, 8, 1) and together.min() >= 0 and together.max() <= 16
    np.testing.assert_array_equal(together, apart)
    assert not np.array_equal(together[0], together[1])


def test_a_grid_shows_every_image_in_its_grey(tmp_path):
    x = np.arange(5 * 8 * 8).reshape(5, 8, 8, 1) % 17
    figures.write(x, tmp_path / "grid.png", levels=17, data=x)
    page = np.asarray(Image.open(tmp_path / "grid.png"))
    assert page.shape == (6 * 19, 6 * 28)  # 2 by 3 images, enlarged 6 times, with their frames
    small = page[::6, ::6]
    assert small[1, 10] == round(float(x[1, 0, 0, 0]) * 255 / 16)
    assert small[10, 1] == round(float(x[3, 0, 0, 0]) * 255 / 16)
    assert small[10 + 7, 10 + 7] == round(float(x[4, 7, 7, 0]) * 255 / 16)


def test_points_become_a_scatter_and_anything_an_array(tmp_path):
    x = np.random.RandomState(0).normal(size=(50, 2))
    figures.write(x, tmp_path / "points.png", levels=None, data=x)
    assert np.asarray(Image.open(tmp_path / "points.png")).std() > 1
    figures.write(x, tmp_path / "points.npy", levels=None, data=x)
    np.testing.assert_array_equal(np.load(tmp_path / "points.npy"), x)
    with pytest.raises(UserError, match="no picture for data of shape"):
        figures.write(x[:, :, None, None], tmp_path / "x.png", levels=None, data=x)
    with pytest.raises(UserError, match=r"\.png or \.npy"):
        figures.write(x, tmp_path / "x.jpg", levels=None, data=x)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["points.npy", "points.png"]
