"""A run whose number of points is a law of its condition: trained, kept, sampled and scored."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
import vdm.run
from vdm import sets
from vdm.condition import Conditions
from vdm.networks import SetTransformer
from vdm.run import cli, config as configs, data, dry_run, evaluate, figures, sample, train
from vdm.run.data import condition as conditions, kept_conditions
from vdm.run.training import build, parts, step

pytestmark = pytest.mark.float32

RNG = np.random.default_rng(0)
# Of class 0 a set has one or two points, of class 1 three and of class 2 five.
LABELS = np.arange(300) % 3
LENGTHS = np.where(LABELS == 0, 1 + np.arange(300) // 3 % 2, 2 * LABELS + 1)
POINTS = RNG.normal(size=(LENGTHS.sum(), 2)).astype(np.float32)
SETS = {"x": POINTS, "lengths": LENGTHS, "labels": LABELS}
LAW = {"name": "network", "width": 8}


def sets_of(folder, arrays=None, law=LAW, network=None, **changed):
    """The config of a run on sets with classes, and with p(n|class)."""
    path = folder / "sets.npz"
    np.savez(path, **(arrays or SETS))
    config = runs.sets(path, **{"batch_size": 30, **changed})
    kinds = {"num_classes": 3} if network is None else network
    model = dataclasses.replace(
        config.model, network={**config.model.network, **kinds}, number_law=law
    )
    return dataclasses.replace(config, model=model)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    config = sets_of(folder, num_steps=150, log_every=50)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=0.03, ema_decay=0.9)
    train.train(dataclasses.replace(config, optimizer=optimizer), folder / "run")
    return folder / "run"


def law_of(run, labels):
    """p(n|class) of a run, n = 1, 2, ..."""
    cond = Conditions(jnp.asarray(labels))
    return np.exp(run.model.number_laws(run.params, cond, len(labels)).log_probs)


def test_a_run_learns_the_shares_of_every_class(trained):
    run = vdm.run.load(trained)
    assert run.model.number_law.largest == 5 and run.model.number_law.width == 8
    there = data.load(run.config.data, "train")
    points, labels = there.points, there.examples.labels
    shares = np.stack([np.bincount(points[labels == k], minlength=6)[1:] for k in range(3)])
    shares = shares / shares.sum(1, keepdims=True)
    # With 90 sets a class: a standard error, or half a set where there is no choice.
    error = np.sqrt(shares * (1 - shares) / 90) + 0.5 / 90
    found = law_of(run, np.arange(3))
    assert np.all(np.abs(found - shares) < error), (found, shares)
    # The bound says so too: it is what a bound given n is, and −log p(n|c) − log n!.
    test = data.load(run.config.data, "test")
    cond = Conditions(test.examples.labels, mask=test.examples.mask)
    values = configs.to_dict(run.config)
    values["model"]["number_law"] = {"name": "none"}
    plain = run._replace(model=build.model(configs.from_dict(values)))
    more = run.vlb(test.x, cond, key=0).prior - plain.vlb(test.x, cond, key=0).prior
    expected = -np.log(law_of(run, test.examples.labels)[np.arange(len(test)), test.points - 1])
    expected -= [math.lgamma(n + 1) for n in test.points]
    np.testing.assert_allclose(more, expected, rtol=1e-4, atol=1e-5)


def drawn(trained, tmp_path, *words):
    out = tmp_path / "x.npz"
    words = ["sample", f"--workdir={trained}", "--steps=1", f"--out={out}", *words]
    assert cli.main(words) == 0
    with np.load(out) as found:
        assert np.all((found["x"] != 0).any(-1) == found["mask"])
        return found["mask"].sum(1)


def test_samples_have_numbers_of_points_by_the_law_of_their_class(trained, tmp_path):
    run, num = vdm.run.load(trained), 300
    numbers = drawn(trained, tmp_path, f"--num={num}")
    labels = np.arange(num) % 3
    by_class = law_of(run, np.arange(3))
    for k in range(3):
        share = np.bincount(numbers[labels == k], minlength=6)[1:] / (num / 3)
        np.testing.assert_allclose(share, by_class[k], atol=3 * math.log(num / 3) / (num / 3))
    # Sample by sample: the quantile at its turn's golden fraction, each class a third further.
    u = np.mod((np.arange(num) // 3 + 1) * (math.sqrt(5) - 1) / 2 + labels / 3, 1)
    expected = 1 + (np.cumsum(by_class[labels], axis=1) <= u[:, None]).sum(1)
    assert np.mean(numbers == expected) > 0.99  # sums of float32 may be on the other side of u
    # A class that is asked for has its own numbers, however samples are batched.
    np.testing.assert_array_equal(
        drawn(trained, tmp_path, "--num=40", "--label=1", "--batch_size=7"),
        1 + (np.cumsum(by_class[[1] * 40], axis=1) <= u[:40, None]).sum(1),
    )
    x = run.sample(num, key=run.config.sample.seed, num_steps=1)
    np.testing.assert_array_equal((x != 0).any(-1).sum(1), numbers)
    mask = sets.of_lengths(np.asarray([4, 1]), 5)  # a mask that is given stays
    x = run.sample(2, Conditions(np.asarray([2, 2]), mask=mask), key=0, num_steps=1)
    np.testing.assert_array_equal((x != 0).any(-1), mask)


@pytest.mark.parametrize("num_classes", [1, 2, 5, 8, 13, 21])
def test_the_numbers_of_every_class_are_spread_over_its_law(num_classes):
    """With one golden sequence for all, classes as many as a Fibonacci number had a part of it."""
    network = SetTransformer(channels=8, num_heads=1, num_classes=num_classes)
    condition = conditions.build(network, (16, 2), "none", law=sets.NumberLaw((1 / 16,) * 16))
    num = 32 * num_classes
    numbers = condition.masks(np.arange(num)).sum(axis=1)
    for k in range(num_classes):
        counts = np.bincount(numbers[k::num_classes], minlength=17)[1:]
        # Of 32 even ones two are expected of each number.
        assert counts.min() >= 1 and counts.max() <= 3


def test_the_numbers_are_those_of_the_parameters_that_draw(trained):
    run = vdm.run.load(trained)
    moved = jax.tree.map(jnp.array, run.params)
    bias = moved["number_law"]["dense_out"]["bias"]
    moved["number_law"]["dense_out"]["bias"] = bias.at[3].add(50.0)
    x = run._replace(params=moved).sample(9, key=0, num_steps=1)
    np.testing.assert_array_equal((x != 0).any(-1).sum(1), [4] * 9)


def test_pictures_while_training_have_the_numbers_of_the_averaged_parameters(tmp_path, monkeypatch):
    there = []
    monkeypatch.setattr(figures, "write_sets", lambda x, mask, path: there.append((x, mask)))
    config = sets_of(tmp_path, num_steps=4, sample_every=4)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=0.1, ema_decay=0.5)
    train.train(dataclasses.replace(config, optimizer=optimizer), tmp_path / "run")
    run = vdm.run.load(tmp_path / "run")
    ((x, mask),) = there
    np.testing.assert_array_equal((x != 0).any(-1), mask)
    np.testing.assert_array_equal(mask, sample.with_numbers(run, len(x), None).mask)
    raw = vdm.run.load(tmp_path / "run", "raw")
    assert np.any(mask != sample.with_numbers(raw, len(x), None).mask)


def test_an_evaluation_a_score_and_an_export_say_the_same(trained, tmp_path):
    run = vdm.run.load(trained)
    settings = dataclasses.replace(run.config.evaluate, levels_per_example=2)
    evaluate.evaluate(run, "test", settings, trained)
    with np.load(trained / "evaluation_test.npz") as columns:
        total = columns["total_inf"]
    test = data.load(run.config.data, "test")
    cond = Conditions(test.examples.labels, mask=test.examples.mask)
    scores = run.score(test.x, cond, key=0, levels_per_example=2)
    np.testing.assert_allclose(scores.bpd, total, rtol=1e-5)
    out = tmp_path / "alone.safetensors"
    assert cli.main(["export", f"--workdir={trained}", str(out)]) == 0
    alone = vdm.run.load(out)
    np.testing.assert_array_equal(
        alone.score(test.x, cond, key=0, levels_per_example=2).bpd, scores.bpd
    )
    np.testing.assert_array_equal(
        alone.sample(12, key=3, num_steps=1), run.sample(12, key=3, num_steps=1)
    )
    np.savez(tmp_path / "some.npz", x=test.x, mask=test.examples.mask, labels=cond.label)
    words = ["score", str(tmp_path / "some.npz"), f"--workdir={trained}", "--levels_per_example=2"]
    assert cli.main([*words, f"--out={tmp_path / 'scores.csv'}"]) == 0
    rows = np.genfromtxt(tmp_path / "scores.csv", delimiter=",", names=True)
    np.testing.assert_allclose(rows["bpd"], scores.bpd, rtol=1e-5)


def test_the_report_and_the_dry_run_count_its_parameters(trained, tmp_path):
    assert cli.main(["report", f"--workdir={trained}"]) == 0
    # An embedding of 3 classes and three layers, of 8, 8 and 5 outputs.
    count = 3 * 8 + 2 * (8 * 8 + 8) + 8 * 5 + 5
    page = (trained / "report.html").read_text()
    assert "parameters of the network of the number of points" in page and f"{count}" in page
    lines = dict(dry_run.describe(parts.prepare(sets_of(tmp_path))))
    assert lines["parameters of the network of the number of points"] == str(count)
    assert "parameters of the network of the number of points" not in dict(
        dry_run.describe(parts.prepare(sets_of(tmp_path, law={"name": "histogram"})))
    )


def first_gradient(config, size=30):
    """The gradient of the first step, and the batch."""
    made = parts.prepare(config)
    cond = made.condition.of_examples(made.dataset.take(np.arange(size)))
    batch = step.Batch(made.dataset.take(np.arange(size)).x, cond)
    state = step.init_state(made.trainer, batch)
    noise = step.Noise(
        jnp.linspace(0, 0.99, size), jax.random.split(jax.random.key(0), size), jax.random.key(1)
    )
    run = jax.jit(lambda *given: step.gradients(made.trainer, *given))
    loss, _, gradient, _ = run(state, batch, noise)
    return loss, gradient, np.asarray(cond.mask).sum(1)


@pytest.mark.parametrize("weighting", ["elbo", "simple"])
def test_the_number_descends_its_own_nats_whatever_the_weighting(tmp_path, weighting):
    config = sets_of(tmp_path, accumulation_steps=3)
    aim = dataclasses.replace(config.objective, weighting={"name": weighting})
    config = dataclasses.replace(config, objective=aim)
    loss, gradient, numbers = first_gradient(config)
    # A fresh softmax is uniform, and its gradient p less the share of the batch: of sets, not of
    # points, nor of bits per dimension.
    expected = 1 / 5 - np.bincount(numbers, minlength=6)[1:] / len(numbers)
    number = gradient.pop("number_law")
    np.testing.assert_allclose(number["dense_out"]["bias"], expected, atol=1e-6)
    # Nothing else learns from it.
    law = {"name": "none"}
    plain = dataclasses.replace(config, model=dataclasses.replace(config.model, number_law=law))
    plain_loss, plain_gradient, _ = first_gradient(plain)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        gradient,
        plain_gradient,
    )
    assert (loss == plain_loss) == (weighting != "elbo")


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_every_parameter_of_the_number_learns(tmp_path, method):
    config = sets_of(tmp_path, num_steps=4)
    optimizer = dataclasses.replace(config.optimizer, method={"name": method})
    config = dataclasses.replace(config, optimizer=optimizer)
    state = train.train(config, tmp_path / "run")
    made = parts.prepare(config)
    first = step.init_state(made.trainer, made.example).params["number_law"]
    jax.tree.map(
        lambda before, after: np.testing.assert_(np.any(before != after)),
        first,
        state.params["number_law"],
    )


def test_a_run_resumes_and_begins_with_another(trained, tmp_path, capsys):
    source = vdm.run.load(trained).params
    config = sets_of(tmp_path, num_steps=1, init_from=str(trained))
    still = dataclasses.replace(config.optimizer, learning_rate=1e-12)
    config = dataclasses.replace(config, optimizer=still)
    begun = train.train(config, tmp_path / "same").params
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        begun["number_law"],
        source["number_law"],
    )
    assert "begins anew" not in capsys.readouterr().err
    wide = {**LAW, "width": 12}
    model = dataclasses.replace(config.model, number_law=wide)
    anew = train.train(dataclasses.replace(config, model=model), tmp_path / "wide").params
    assert np.abs(anew["number_law"]["dense_out"]["kernel"]).max() < 1e-6
    assert "network of the number of points is another one, and begins" in capsys.readouterr().err
    # In two goes as in one.
    config = sets_of(tmp_path, num_steps=4)
    whole = train.train(config, tmp_path / "whole")
    half = dataclasses.replace(config.train, num_steps=2)
    train.train(dataclasses.replace(config, train=half), tmp_path / "goes")
    goes = train.train(config, tmp_path / "goes")
    jax.tree.map(np.testing.assert_array_equal, goes.params, whole.params)


def test_without_its_condition_a_set_has_the_law_of_all(tmp_path):
    network = {"num_classes": 3, "optional_cond": True}
    config = sets_of(tmp_path, network=network, num_steps=4, cond_dropout=0.5)
    train.train(config, tmp_path / "run")
    run = vdm.run.load(tmp_path / "run")
    assert run.model.number_law.optional_cond
    test = data.load(run.config.data, "test")
    cond = Conditions(mask=test.examples.mask)
    plain = run._replace(model=dataclasses.replace(run.model, number_law=None))
    more = run.vlb(test.x, cond, key=0).prior - plain.vlb(test.x, cond, key=0).prior
    (of_all,) = run.model.number_laws(run.params, None, 1).log_probs
    orders = np.asarray([math.lgamma(n + 1) for n in test.points])
    expected = -np.asarray(of_all)[test.points - 1] - orders
    np.testing.assert_allclose(more, expected, rtol=1e-4, atol=1e-5)


def test_a_condition_of_each_point_goes_with_the_points_that_it_is_of(tmp_path):
    arrays = {**SETS, "cond_field": POINTS[:, :1] + 3.0, "cond": np.stack([LABELS] * 2, 1) + 0.5}
    network = {"cond_dim": 2, "cond_channels": 1}
    config = sets_of(tmp_path, arrays, network=network)
    train.train(config, tmp_path / "run")
    run = vdm.run.load(tmp_path / "run")
    assert run.model.number_law.cond_dim == 2
    kept = kept_conditions.read(tmp_path / "run", run.model.network).some
    np.testing.assert_array_equal(kept.mask, (kept.field != 0).any(-1))
    given = sample.with_numbers(run, 70, None)  # more than there are kept
    np.testing.assert_array_equal(given.mask, kept.mask[np.arange(70) % 64])
    numbers = drawn(tmp_path / "run", tmp_path, "--num=70")
    np.testing.assert_array_equal(numbers, given.mask.sum(1))
