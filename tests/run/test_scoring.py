"""Scores of a trained run: those of an evaluation, of each example by its position alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from exact_run import with_law
from vdm import VDM, VLB, bits_per_dim, likelihoods, networks, schedules
from vdm.run import data, evaluate, mesh, sample, trained
from vdm.run.config import DevicesConfig
from vdm.run.data.condition import Condition
from vdm.run.errors import UserError
from vdm.run.evaluation import ode
from vdm.run.evaluation.record import TERMS

pytestmark = pytest.mark.float32

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A run on digits given their class, and its workdir."""
    workdir = runs.copy_of("classes", tmp_path_factory.mktemp("classes"))
    return trained.load(workdir), workdir


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    return trained.load(runs.copy_of("points", tmp_path_factory.mktemp("points")))


@pytest.fixture
def no_data(monkeypatch):
    def load(*_):
        raise AssertionError("the data set is asked for")

    monkeypatch.setattr(data, "load", load)


def settings(run, **changes):
    """The run with other settings of its evaluation."""
    changed = dataclasses.replace(run.config.evaluate, **changes)
    return run._replace(config=dataclasses.replace(run.config, evaluate=changed))


def stirred(run):
    """The run with noise added to its parameters: what the classes add begins at zero."""
    rng = np.random.default_rng(0)
    noisy = [leaf + 0.1 * rng.normal(size=leaf.shape) for leaf in jax.tree.leaves(run.params)]
    noisy = [jnp.asarray(leaf, jnp.float32) for leaf in noisy]
    return run._replace(params=jax.tree.unflatten(jax.tree.structure(run.params), noisy))


def true_bits(x):
    """−log2 p(x) per dimension under the data set `mixture`, from its definition."""
    x = x.astype(np.float64)
    means = np.array([[-1.0, -0.5], [1.0, 0.2], [1.5, 1.8]])
    widths, weights = np.array([0.5, 0.25, 0.15]), np.array([0.6, 0.3, 0.1])
    squares = ((x[:, None] - means) ** 2).sum(-1)
    density = (weights / (2 * np.pi * widths**2) * np.exp(-squares / (2 * widths**2))).sum(-1)
    return -np.log2(density) / 2


def test_the_scores_of_a_split_are_what_its_evaluation_keeps(classes, tmp_path):
    run, _ = classes
    asked = dataclasses.replace(run.config.evaluate, levels_per_example=3, seed=7)
    evaluate.evaluate(run, "test", asked, tmp_path)
    kept = np.load(tmp_path / "evaluation_test.npz")
    test = data.load(run.config.data, "test")
    for key in (7, np.int64(7), jax.random.key(7)):
        found = run.score(test.x, test.labels, key=key, levels_per_example=3, batch_size=100)
        np.testing.assert_allclose(found.bpd, kept["total_inf"], rtol=1e-6)
        np.testing.assert_allclose(found.error, kept["error_inf"], rtol=1e-5)
        for i, name in enumerate(TERMS):
            np.testing.assert_allclose(found.terms[:, i], kept[f"{name}_inf"], rtol=1e-6)
    other = run.score(test.x, test.labels, key=8, levels_per_example=3)
    assert np.all(other.bpd != found.bpd)


def test_the_class_counts(classes):
    run = stirred(classes[0])
    test = data.load(run.config.data, "test")
    own, wrong = (
        run.score(test.x[:20], (test.labels[:20] + i) % 10, key=0).terms for i in range(2)
    )
    np.testing.assert_array_equal(own[:, 0], wrong[:, 0])  # the prior does not see it
    assert np.all(own[:, 2] != wrong[:, 2])


def test_a_score_depends_on_the_position_and_on_nothing_else(points, no_data):
    x = np.random.default_rng(0).normal(size=(11, 2)).astype(np.float32)
    whole = points.score(x, key=0, levels_per_example=5)
    for batch_size in (2, 13, 512):
        other = points.score(x, key=0, levels_per_example=5, batch_size=batch_size)
        np.testing.assert_allclose(other.bpd, whole.bpd, rtol=1e-6)
        np.testing.assert_allclose(other.terms, whole.terms, rtol=1e-5, atol=1e-7)
    # The last batch is filled up, and what follows an example does not matter.
    for n in (1, 3, 10):
        np.testing.assert_allclose(
            points.score(x[:n], key=0, levels_per_example=5).bpd, whole.bpd[:n], rtol=1e-6
        )
    one_mesh = mesh.make(DevicesConfig(), trained.one_device())
    alone = points._replace(mesh=one_mesh, params=jax.device_get(points.params))
    one_device = alone.score(x, key=0, levels_per_example=5)
    np.testing.assert_allclose(one_device.bpd, whole.bpd, rtol=1e-6)
    twice = points.score(x[[0, 0]], key=0, levels_per_example=5)
    assert twice.bpd[0] != twice.bpd[1]


def test_all_array_likes_are_taken(points):
    x = np.random.default_rng(1).normal(size=(4, 2))
    want = points.score(x.astype(np.float32), key=3).bpd
    for like in (x, x.tolist(), jnp.asarray(x, jnp.float32)):
        np.testing.assert_array_equal(points.score(like, key=3).bpd, want)


def test_calls_of_all_sizes_share_one_program(points, classes):
    count = 0

    def seen(event, duration, **about):
        nonlocal count
        count += event == COMPILED

    x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    points.score(x[:3], key=0, levels_per_example=4, batch_size=20)
    points.vlb(x[:3], key=0)
    again = points._replace(params=jax.tree.map(lambda leaf: 2 * leaf, points.params))
    typed = jax.random.key(5)
    jax.monitoring.register_event_duration_secs_listener(seen)
    try:
        for n, key in ((1, 1), (3, 2), (40, typed)):
            points.score(x[:n], key=key, levels_per_example=4, batch_size=20)
        again.score(x, key=0, levels_per_example=4, batch_size=20)
        points.vlb(x[:3], key=1)
        assert count == 0
        points.score(x, key=0, levels_per_example=4, batch_size=22)
        assert count > 0  # what counts the programs does count
    finally:
        jax.monitoring.unregister_event_duration_listener(seen)


def test_the_mean_score_of_the_exact_denoiser_is_the_entropy():
    run = with_law("schedule")
    x = data.load(run.config.data, "test").x[:1500]
    found = run.score(x, key=0, levels_per_example=32, batch_size=4096)
    apart = found.bpd - true_bits(x)
    # Five standard errors, which the gaps at ±12 are far below.
    assert abs(apart.mean()) < 5 * apart.std() / np.sqrt(len(x))
    # The levels are stratified: the error that is stated is too large rather than too small.
    assert np.mean(apart**2) < np.mean(found.error**2)
    outlier = run.score(np.array([[6.0, -5.0]]), key=0, levels_per_example=32)
    assert outlier.bpd[0] > found.bpd.max()


@dataclasses.dataclass(frozen=True)
class Telling:
    """What stands for a model, and whose "bound" is its noise level, in bits per dimension."""

    likelihood: object = likelihoods.gaussian(1.0)

    def log_snr(self, params):
        return lambda t: 12.0 - 24.0 * t

    def vlb(self, params, keys, x, cond, *, noise_levels, num_steps=None, clip_denoised=False):
        bits = np.log(2) * x.shape[1]
        noise = jax.vmap(jax.random.uniform)(jnp.broadcast_to(keys, len(x)))
        return VLB(bits * noise_levels.log_snr, bits * noise, 0 * noise)


def test_the_levels_of_every_example_are_stratified(unchecked):
    run = with_law("schedule")._replace(model=Telling())
    n, levels = 1000, 8
    found = run.score(np.zeros((n, 2), np.float32), key=0, levels_per_example=levels)
    # λ is uniform on ±12, of variance 24²/12. The mean of independent levels would have an 8th of
    # it; that of levels in a row with one offset is uniform on ±12/8, an offset of each example.
    mean = found.terms[:, 0]
    assert np.abs(mean).max() <= 12 / levels + 1e-4
    assert mean.var() == pytest.approx((24 / levels) ** 2 / 12, rel=5 * np.sqrt(0.8 / n))
    # Their noise is independent: the error that is stated is the true one, of variance 1/12.
    assert found.terms[:, 1].var() == pytest.approx(1 / 12 / levels, rel=5 * np.sqrt(2 / n))


def test_vlb_spreads_one_level_for_each_example_over_the_batch(unchecked):
    run = with_law("schedule")._replace(model=Telling())
    terms = run.vlb(np.zeros((500, 2), np.float32), key=0)
    log_snr = np.asarray(terms.prior) / (2 * np.log(2))
    np.testing.assert_allclose(np.diff(np.sort(log_snr)), 24 / 500, rtol=1e-3)
    # In no order: five standard errors of a correlation.
    assert abs(np.corrcoef(log_snr, np.arange(500))[0, 1]) < 5 / np.sqrt(500)


def test_one_level_has_no_error(points):
    found = points.score(np.zeros((3, 2)), key=0, levels_per_example=1)
    assert np.isnan(found.error).all() and np.isfinite(found.bpd).all()
    run = settings(points, levels_per_example=1)
    assert np.isfinite(run.score(np.zeros((3, 2)), key=0).error).all()  # two, unless asked for


def test_the_ode_s_score_is_the_density(no_data):
    run = settings(with_law("schedule"), divergence="exact", tolerance=1e-5)
    x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    found = run.score(x, key=0, bound="ode")
    # Of data with noise of e^{-6}; some of these examples are far from all data.
    np.testing.assert_allclose(found.bpd, true_bits(x), rtol=1e-3, atol=2e-3)
    assert found.terms is None and np.all(found.error == 0)
    probed = settings(run, divergence="hutchinson", num_probes=64)
    found = probed.score(x, key=0, bound="ode")
    apart = (found.bpd - true_bits(x)) / found.error
    assert np.mean(apart**2) < 2 and np.abs(apart).max() < 5
    one = settings(run, divergence="hutchinson", ode_steps=5)
    assert np.isnan(one.score(x, key=0, bound="ode").error).all()


def test_the_error_of_draws_is_their_spread(points):
    rng = np.random.default_rng(0)
    asked = dataclasses.replace(points.config.evaluate, divergence="exact")
    nothing = np.zeros(4000)
    drawn = ode.Weights(rng.normal(-40.0, 0.5, (4000, 30)), nothing, nothing, nothing)
    nats = ode.bound(drawn, 30, 1) * np.log(2)
    error = ode.error(drawn, asked, "uniform")
    # The standard deviation of 4,000 values to five of its errors, and O(1/K) of the first order.
    assert np.sqrt(np.mean(error**2)) == pytest.approx(nats.std(), rel=5 / np.sqrt(8000) + 1 / 30)
    np.testing.assert_array_equal(ode.error(drawn, asked, None), nothing)
    one = drawn._replace(log_weights=drawn.log_weights[:, :1])
    assert np.isnan(ode.error(one, asked, "uniform")).all()
    with_probes = drawn._replace(standard_error=np.full(4000, 3.0))
    probed = dataclasses.replace(asked, divergence="hutchinson", num_probes=2)
    np.testing.assert_allclose(ode.error(with_probes, probed, "uniform") ** 2, error**2 + 9)


def optional(run):
    """A model that works with and without classes, with fresh parameters in place of the run's."""
    network = networks.MLP(width=16, num_blocks=1, num_classes=10, optional_cond=True)
    model = VDM(schedules.linear(8.0, -6.0), network, likelihoods.discretised(17))
    blank = np.zeros((1, 8, 8, 1), np.int32)
    params = model.init(jax.random.key(0), blank, np.zeros(1, np.int32))
    return stirred(run._replace(model=model, params=params))


def test_without_classes_the_bound_is_unconditional(classes):
    run = optional(classes[0])
    x = data.load(run.config.data, "test").x[:6]
    given, without = run.score(x, np.arange(6), key=0), run.score(x, key=0)
    assert np.all(given.terms[:, 2] != without.terms[:, 2])
    alone = run._replace(condition=Condition()).score(x, key=0)
    np.testing.assert_array_equal(without.bpd, alone.bpd)
    one = dataclasses.replace(run.config.sample, num_steps=2)
    run = run._replace(config=dataclasses.replace(run.config, sample=one))
    guided, plain = (run.sample(5, key=0, guidance=g) for g in (8.0, 1.0))
    assert guided.shape == plain.shape and np.any(guided != plain)


def test_vlb_is_the_model_s_own(points, classes, no_data):
    x = np.random.default_rng(0).normal(size=(4000, 2)).astype(np.float32)
    exact = with_law("schedule")
    terms = exact.vlb(x[:1000], key=0)
    apart = bits_per_dim(np.asarray(terms.total, np.float64), 2) - true_bits(x[:1000])
    assert abs(apart.mean()) < 5 * apart.std() / np.sqrt(1000)
    assert isinstance(terms, VLB) and terms.prior.shape == (1000,)
    # Under another law the weights are others, the mean is not.
    sigmoid = with_law("sigmoid").vlb(x[:1000], key=0)
    apart = bits_per_dim(np.asarray(sigmoid.total, np.float64), 2) - true_bits(x[:1000])
    assert abs(apart.mean()) < 5 * apart.std() / np.sqrt(1000)
    assert np.all(sigmoid.diffusion != terms.diffusion)
    run, _ = classes
    with pytest.raises(UserError, match="expected cond, a class from 0 to 9"):
        run.vlb(np.zeros((3, 8, 8, 1), int), key=0)
    levels = jnp.zeros((3, 8, 8, 1), int)
    assert run.vlb(levels, [0, 1, 9], key=jax.random.key(1)).total.shape == (3,)


def test_samples_are_those_of_the_command(classes, no_data):
    run, _ = classes
    asked = dataclasses.replace(run.config.sample, seed=4)
    np.testing.assert_array_equal(run.sample(7, key=4), sample.sample(run, 7, asked))
    changes = {"num_steps": 3, "sampler": "ddim", "final": "draw", "grid": "edm"}
    fewer = run.sample(5, key=4, batch_size=2, **changes)
    asked = dataclasses.replace(asked, **changes)
    np.testing.assert_array_equal(fewer, sample.sample(run, 5, asked))
    run = stirred(run)
    in_order = run.sample(6, np.arange(6), key=jax.random.key(4), batch_size=4)
    np.testing.assert_array_equal(in_order, run.sample(7, key=4)[:6])
    assert np.any(run.sample(6, np.full(6, 9), key=4) != in_order)


NAN = np.full((3, 2), np.nan)
LEVELS = np.zeros((2, 8, 8, 1), int)
REFUSED = {
    "one example": (
        "points",
        {"x": [0.0, 1.0]},
        r"x is one example, of shape \[2\]: .* x\[N",
    ),
    "another shape": ("points", {"x": np.zeros((4, 3))}, r"shape \[2\], the batch.* \[4, 3\]"),
    "no examples": ("points", {"x": np.zeros((0, 2))}, "at least one: got shape"),
    "ragged": ("points", {"x": [[1.0], [1.0, 2.0]]}, "^x: "),
    "nan": ("points", {"x": NAN}, r"x must be finite numbers .* got nan at \[0, 0\]"),
    "integers": ("points", {"x": np.zeros((4, 2), int)}, "real numbers, such as float32: got int"),
    "classes": ("points", {"x": np.zeros((4, 2)), "cond": [0] * 4}, "this model has no classes"),
    "bound": ("points", {"x": np.zeros((4, 2)), "bound": "vbl"}, "unknown bound 'vbl'.*'vlb'"),
    "both bounds": ("points", {"x": np.zeros((4, 2)), "bound": "vlb,ode"}, "unknown bound"),
    "levels": ("points", {"x": np.zeros((4, 2)), "levels_per_example": 0}, "at least 1: got 0"),
    "batch": ("points", {"x": np.zeros((4, 2)), "batch_size": 2.5}, "batch_size must be of type"),
    "seed": ("points", {"x": np.zeros((4, 2)), "key": -1}, "key must be at least 0: got -1"),
    "no key": ("points", {"x": np.zeros((4, 2)), "key": None}, "key is NoneType: expected a seed"),
    "keys": (
        "points",
        {"x": np.zeros((4, 2)), "key": jax.random.split(jax.random.key(0), 4)},
        r"key has shape \[4\]",
    ),
    "reals": ("classes", {"x": LEVELS + 0.5, "cond": [0, 1]}, "integers from 0 to 16: got float"),
    "a level": ("classes", {"x": LEVELS + 17, "cond": [0, 1]}, "the largest value of x is 17"),
    "below": (
        "classes",
        {"x": LEVELS - 1, "cond": [0, 1]},
        "be whole numbers from 0: got -1",
    ),
    "no classes": ("classes", {"x": LEVELS}, "conditioned on one of 10 classes: expected cond"),
    "a class": ("classes", {"x": LEVELS, "cond": [0, 10]}, "0 to 9 for .* got 10 for example 1"),
    "one class": ("classes", {"x": LEVELS, "cond": 3}, r"got int\d+ of shape \[\]"),
    "class names": ("classes", {"x": LEVELS, "cond": ["a", "b"]}, "got <U1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_one_line(case, points, classes, unchecked):
    name, given, message = REFUSED[case]
    run = points if name == "points" else classes[0]
    with pytest.raises(UserError, match=message) as caught:
        run.score(**{"key": 0, **given})
    assert "\n" not in str(caught.value)


def test_samples_that_do_not_fit_are_refused(points, classes):
    for run, given, message in (
        (points, {"cond": [0, 1, 2]}, "this model has no classes"),
        (classes[0], {"cond": [0, 1]}, "for each of the 3 examples"),
        (classes[0], {"guidance": 2.0}, "guidance=2.0 needs a model"),
        (classes[0], {"sampler": "ddmi"}, "Did you mean 'ddim'"),
        (classes[0], {"num_steps": 0}, "sample.num_steps must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            run.sample(3, key=0, **given)
