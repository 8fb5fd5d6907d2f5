"""Evaluation and sampling of a trained run: exact, per example, independent of the batch."""

import dataclasses
import json
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

import runs
from exact_run import with_law
from vdm import VDM, VLB, adaptive, laws, samplers
from vdm.run import data, evaluate, figures, sample, train, trained
from vdm.run.config import parse
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import ids_checksum
from vdm.run.errors import UserError
from vdm.run.evaluation import files
from vdm.run.evaluation.record import TERMS

pytestmark = pytest.mark.float32


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = runs.copy_of("classes", tmp_path_factory.mktemp("run"))
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
    assert record == json.loads((run[1] / files.RESULT_FILE).read_text())
    assert (record["bound"], record["num_steps"], record["split"]) == ("vlb", "inf", "test")
    assert (record["dataset"], record["step"], record["bpd"]["n"]) == ("digits", 3, 297)
    assert (record["law"], record["params"], record["seed"]) == ("schedule", "ema", 0)
    assert (record["dataset_version"], record["num_examples"]) == ("digits:1", 297)
    assert {row["precision"] for row in record["results"]} == {"highest"}
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


def test_the_exact_denoiser_measures_the_entropy_of_the_data(tmp_path):
    # A wide range and p(x|z_0) as sharp as q(z_0|x): the bound meets −log p(x) on average.
    run = with_law("schedule")
    settings = dataclasses.replace(run.config.evaluate, levels_per_example=64, batch_size=4096)
    record = evaluate.evaluate(run, "test", settings, tmp_path)
    x = data.load(run.config.data, "test").x.astype(np.float64)
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


def total_bits(trained_run, folder, **settings):
    """The record, and the bound of every test example."""
    settings = dataclasses.replace(trained_run.config.evaluate, batch_size=4096, **settings)
    record = evaluate.evaluate(trained_run, "test", settings, folder)
    kept = np.load(folder / "evaluation_test.npz")
    return record, sum(kept[f"{name}_inf"] for name in ("prior", "reconstruction", "diffusion"))


def test_every_law_measures_the_same_bound(tmp_path):
    bits = {}
    for with_, asked, said in (
        ("schedule", "training", "schedule"),
        ("schedule", "sigmoid", "sigmoid"),
        ("adaptive", "training", "adaptive"),
        ("adaptive", "adaptive", "adaptive"),
        ("adaptive", "schedule", "schedule"),
    ):
        run = with_law(with_)
        record, bits[with_, asked] = total_bits(run, tmp_path, law=asked, levels_per_example=8)
        assert {row["law"] for row in record["results"]} == {said}
        assert {row["params"] for row in record["results"]} == {"raw"}
    own, even = bits["adaptive", "training"], bits["schedule", "training"]
    np.testing.assert_array_equal(own, bits["adaptive", "adaptive"])
    np.testing.assert_array_equal(even, bits["adaptive", "schedule"])
    # Positions and noise are shared, so only the law makes a difference.
    for one, other in ((own, even), (own, bits["schedule", "sigmoid"])):
        difference = one - other
        assert difference.std() > 0.01
        assert abs(difference.mean()) < 5 * difference.std() / np.sqrt(len(difference))


def test_evaluation_is_stratified_and_weighs_every_level_alike(tmp_path):
    # Bins of one spread and of different means: stratified and unweighted, all are alike.
    first = np.random.default_rng(0).gamma(1.0, 1.0, 100)
    levels = adaptive.Histogram(
        *map(jnp.asarray, (1e9 * np.ones(100), np.ones(100), first, first**2 + 1))
    )
    run = with_law("adaptive")._replace(law_state=levels)
    bits = [total_bits(run, tmp_path, law=law, levels_per_example=2)[1] for law in laws.LAWS]
    gap = {law: np.abs(one - bits[0]).max() for law, one in zip(laws.LAWS, bits, strict=True)}
    assert gap["adaptive"] < 0.01 < gap["sigmoid"]


def test_a_law_is_for_infinite_steps_alone(tmp_path):
    run = with_law("adaptive")
    settings = dataclasses.replace(run.config.evaluate, num_steps="5,inf", law="sigmoid")
    record = evaluate.evaluate(run, "train", settings, tmp_path)
    assert [row["law"] for row in record["results"]] == ["schedule", "sigmoid"]
    assert [row["split"] for row in record["results"]] == ["train", "train"]


def test_unknown_laws_are_named(tmp_path):
    for law, message in (
        ("sigmod", "unknown evaluate.law 'sigmod'.*'sigmoid'"),
        ("adaptive", "this run's law is 'schedule'"),
    ):
        with pytest.raises(UserError, match=message):
            total_bits(with_law("schedule"), tmp_path, law=law)


def telling(terms_fn):
    """What stands for a model, and whose "bound" tells what each of its rows was given."""
    bits = np.log(2) * 2

    def vlb(params, keys, x, cond, *, noise_levels, num_steps, clip_denoised):
        assert not clip_denoised
        u = jax.vmap(jax.random.uniform)(keys)
        return VLB(*(bits * term for term in terms_fn(x=x, cond=cond, t=noise_levels, u=u)))

    model = types.SimpleNamespace(
        network=types.SimpleNamespace(num_classes=3),
        vlb=vlb,
        likelihood=types.SimpleNamespace(levels=None, bounds=None, encode=lambda x: x),
        log_snr=lambda params: lambda t: 12.0 - 24.0 * t,
    )
    return with_law("schedule")._replace(model=model, condition=Condition(3))


def test_every_row_has_its_own_time_and_noise(tmp_path, unchecked):
    run = telling(lambda x, cond, t, u: (t, u, t * u))

    def told(**settings):
        settings = {"num_steps": "9", "batch_size": 1000, **settings}
        evaluate.evaluate(
            run, "test", dataclasses.replace(run.config.evaluate, **settings), tmp_path
        )
        return dict(np.load(tmp_path / "evaluation_test.npz"))

    one, other = told(levels_per_example=1), told(levels_per_example=1, seed=1)
    for name in ("prior_9", "reconstruction_9"):
        assert stats.kstest(one[name], "uniform").pvalue > 1e-4
        assert abs(np.corrcoef(one[name], other[name])[0, 1]) < 5 / np.sqrt(4000)
    # Four levels: their noise is independent, their times are evenly spread.
    four = told(levels_per_example=4)
    assert four["reconstruction_9"].var() == pytest.approx(1 / 48, rel=5 * np.sqrt(2 / 4000))
    assert four["prior_9"].min() >= 0.375 - 1e-6 and four["prior_9"].max() <= 0.625 + 1e-6
    assert stats.kstest(4 * four["prior_9"] - 1.5, "uniform").pvalue > 1e-4


def test_every_row_is_of_its_own_example(tmp_path, unchecked):
    run = telling(lambda x, cond, t, u: (x[:, 0], x[:, 1], cond.astype(x.dtype)))
    settings = dataclasses.replace(run.config.evaluate, num_steps="9", batch_size=999)
    record = evaluate.evaluate(run, "test", settings, tmp_path)
    kept, test = np.load(tmp_path / "evaluation_test.npz"), data.load(runs.points().data, "test")
    told = np.stack([kept[f"{name}_9"] for name in TERMS], 1)
    np.testing.assert_allclose(told, np.column_stack([test.x, test.labels]), rtol=1e-6)
    # As many training examples, from the first to the last.
    train_split = data.load(runs.points().data, "train")
    spread = np.linspace(0, 19_999, 4000).round().astype(int)
    expected = np.column_stack([train_split.x, train_split.labels])[spread].mean(0)
    terms = record["results"][1]["terms"]
    np.testing.assert_allclose([terms[name]["mean"] for name in TERMS], expected, rtol=1e-5)


def test_a_bound_that_is_not_finite_is_an_error(tmp_path, unchecked):
    run = telling(lambda x, cond, t, u: (jnp.abs(x[:, 0]) * jnp.inf, t, u))
    with pytest.raises(
        UserError, match=r"the bound is not finite: .* rows, the first one of example 0"
    ):
        total_bits(run, tmp_path, num_steps="9")


def test_the_headline_is_the_largest_number_of_steps(tmp_path, unchecked):
    run = telling(lambda x, cond, t, u: (t, u, t))
    for num_steps, largest in (("7,90,8", 90), ("inf,9", "inf")):
        run = run if largest == 90 else with_law("schedule")
        settings = dataclasses.replace(run.config.evaluate, num_steps=num_steps)
        assert evaluate.evaluate(run, "test", settings, tmp_path)["num_steps"] == largest


def test_a_trained_run_is_read_back_whole(tmp_path):
    config = runs.points(num_steps=2)
    law = {"name": "adaptive", "num_bins": 7}
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, law=law))
    state = train.train(config, tmp_path)
    ema, raw = trained.load(tmp_path), trained.load(tmp_path, "raw")
    for loaded, kind, params in ((ema, "ema", state.ema), (raw, "raw", state.params)):
        assert (loaded.kind, loaded.step, loaded.config) == (kind, 2, config)
        assert loaded.law == laws.AdaptiveLaw(num_bins=7)
        chex.assert_trees_all_equal(loaded.params, params)
        chex.assert_trees_all_equal(loaded.law_state, state.law_state)
    pairs = zip(jax.tree.leaves(ema.params), jax.tree.leaves(raw.params), strict=True)
    assert any(np.any(one != other) for one, other in pairs) and np.any(ema.law_state.mass > 0)
    with pytest.raises(UserError, match=r"unknown params 'emma'.*'ema'\?"):
        trained.load(tmp_path, "emma")


def test_the_subset_of_the_training_split_is_as_large_as_the_test_split(run):
    record = evaluate.evaluate(run[0], "test", run[0].config.evaluate, run[1])
    assert [row["bpd"]["n"] for row in record["results"]] == [297, 297]


@pytest.mark.parametrize("text", ["0", "ten", "10,", "-5", "1.5", "²", "999999"])
def test_a_bad_number_of_steps_is_named(text):
    with pytest.raises(UserError, match="num_steps must be whole numbers from 1 to"):
        parse.parse_num_steps(text)


def test_a_sample_depends_on_its_own_key_alone(run):
    settings = run[0].config.sample
    together = sample.sample(run[0], 7, dataclasses.replace(settings, batch_size=7))
    apart = sample.sample(run[0], 7, dataclasses.replace(settings, batch_size=3))
    assert together.shape == (7, 8, 8, 1) and together.min() >= 0 and together.max() <= 16
    np.testing.assert_array_equal(together, apart)
    assert not np.array_equal(together[0], together[1])


def test_sampling_asks_the_model_for_what_is_asked(run, monkeypatch):
    asked = set()

    def draw(self, params, keys, shape, *, sampler, cond, chain, **settings):
        assert chain is None
        asked.add((sampler, *settings.values()))
        row = jnp.stack([cond.astype(float), jax.vmap(jax.random.uniform)(keys)], 1)
        return jnp.broadcast_to(jnp.tile(row, (1, 32)).reshape(-1, 8, 8, 1), shape)

    monkeypatch.setattr(VDM, "sample", draw)
    settings = dataclasses.replace(
        run[0].config.sample,
        batch_size=6,
        num_steps=17,
        sampler="ddim:eta=0.5",
        grid="edm",
        clip_denoised=True,
        final="draw",
    )
    x = sample.sample(run[0], 23, settings).reshape(23, 32, 2)[:, 0]
    assert asked == {(samplers.ddim(0.5), 17, None, "edm", True, "draw")}
    np.testing.assert_array_equal(x[:, 0], np.arange(23) % 10)
    other = sample.sample(run[0], 23, dataclasses.replace(settings, seed=1)).reshape(23, 32, 2)
    assert len(set(x[:, 1]) | set(other[:, 0, 1])) == 46


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
    with pytest.raises(
        UserError, match=r"real numbers of shape \[2, 1, 1, 1, 1\] cannot be drawn as a picture"
    ):
        figures.write(x[:, :, None, None, None, None], tmp_path / "x.png", levels=None, data=x)
    with pytest.raises(UserError, match=r"real numbers of .* cannot be drawn as a folder of"):
        figures.write(x[:, :, None, None], tmp_path / "x", levels=None)
    with pytest.raises(UserError, match=r"\.png or \.npy"):
        figures.write(x, tmp_path / "x.jpg", levels=None, data=x)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["points.npy", "points.png"]
