"""Schedules: exact ends, a strict fall between them, and an honest rate and inverse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from vdm import schedules
from vdm.schedules import learned
from vdm.schedules.chain import PiecewiseLinear
from vdm.schedules.fixed import Linear

ENDS = (13.3, -5.0)
SHIFT = 2 * np.log(64 / 8)
DDPM = np.linspace(1e-4, 0.02, 1000)
ALL = {
    "linear": schedules.linear(*ENDS),
    "cosine": schedules.cosine(*ENDS),
    "shifted": schedules.cosine(*ENDS, shift=SHIFT),
    "beta_linear": schedules.beta_linear(*ENDS),
    "flow_matching": schedules.flow_matching(*ENDS),
    "edm": schedules.edm(*ENDS),
    "from_betas": schedules.from_betas(DDPM[::50]),
    "learned_linear": schedules.learned_linear(*ENDS),
    "learned_monotone": schedules.learned_monotone(*ENDS, width=64),
    "learned_interior": schedules.learned_monotone(*ENDS, width=64, learn_ends=False),
}
UNPINNED = schedules.learned_unpinned(*ENDS, width=64)
every = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL.keys())
constructors = pytest.mark.parametrize(
    "constructor",
    [
        schedules.linear,
        schedules.cosine,
        schedules.beta_linear,
        schedules.flow_matching,
        schedules.edm,
        schedules.learned_linear,
        schedules.learned_monotone,
        schedules.learned_unpinned,
    ],
)
with_unpinned = pytest.mark.parametrize(
    "schedule", [*ALL.values(), UNPINNED], ids=[*ALL.keys(), "learned_unpinned"]
)


# Compiled once for a schedule, a shape and a precision: a step at a time costs twenty times that.
@functools.partial(jax.jit, static_argnums=0)
def fresh(schedule):
    return schedule.init(jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def levels(schedule, params, t):
    return schedule.log_snr(params, t)


@functools.partial(jax.jit, static_argnums=0)
def levels_and_rates(schedule, params, t):
    return schedules.log_snr_and_rate(functools.partial(schedule.log_snr, params), t)


@functools.partial(jax.jit, static_argnums=0)
def times(schedule, params, log_snr):
    return schedule.inverse(params, log_snr)


def curve(schedule):
    params = fresh(schedule)
    return lambda t: levels(schedule, params, t)


@functools.cache
def fine_curve(schedule):
    """4097 even times in the precision of the test, which is float32."""
    return curve(schedule)(np.linspace(0.0, 1.0, 4097, dtype=np.float32))


@every
@pytest.mark.float32
def test_ends_are_kept_in_float32(schedule):
    ends = np.asarray(fine_curve(schedule))[[0, -1]]
    assert ends.dtype == jnp.float32
    expected = np.asarray([schedule.log_snr_max, schedule.log_snr_min], np.float32)
    units = 0 if isinstance(schedule, Linear) else 8
    np.testing.assert_array_max_ulp(ends, expected, units)


@with_unpinned
@pytest.mark.float32
def test_falls_strictly_in_float32(schedule):
    assert np.all(np.diff(fine_curve(schedule)) < 0)


@with_unpinned
def test_inverse_gives_the_time_back(schedule):
    params = fresh(schedule)
    t = np.linspace(0.0, 1.0, 49).reshape(7, 7)
    back = times(schedule, params, levels(schedule, params, t))
    np.testing.assert_allclose(back, t, atol=1e-10)


@with_unpinned
def test_rate_is_the_slope_of_each_time(schedule):
    t, h = np.linspace(0.0101, 0.9907, 49), 1e-6
    log_snr, rate = levels_and_rates(schedule, fresh(schedule), t)
    at, ahead, behind = (np.asarray(curve(schedule)(t + d)) for d in (0.0, h, -h))
    assert np.all(rate < 0)
    np.testing.assert_allclose(rate, (ahead - behind) / (2 * h), rtol=1e-6)
    np.testing.assert_allclose(log_snr, at, rtol=1e-13)


def test_the_rate_of_edm_where_both_tails_weigh_the_same():
    schedule = schedules.edm(12.4, -7.6)
    log_snr, rate = levels_and_rates(
        schedule, fresh(schedule), jnp.asarray([0.5 - 1e-6, 0.5, 0.5 + 1e-6])
    )
    np.testing.assert_allclose(log_snr[1], 2.4, atol=1e-9)
    np.testing.assert_allclose(rate[1], rate[0], rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "learned_linear"])
def test_linear_is_linear(name):
    t = np.linspace(0, 1, 49)
    np.testing.assert_allclose(
        curve(ALL[name])(jnp.asarray(t)), ENDS[0] + (ENDS[1] - ENDS[0]) * t, atol=1e-12
    )


@pytest.mark.parametrize("name", ["cosine", "shifted"])
def test_cosine_is_a_stretch_of_the_cosine_schedule(name):
    shift = SHIFT if name == "shifted" else 0.0
    tau = 2 / np.pi * np.arctan(np.exp(-(np.asarray(ENDS) - shift) / 2))
    t = np.linspace(0, 1, 49)
    expected = -2 * np.log(np.tan(np.pi / 2 * (tau[0] + (tau[1] - tau[0]) * t))) + shift
    np.testing.assert_allclose(curve(ALL[name])(jnp.asarray(t)), expected, atol=1e-11)


def quantile(mean=2.4, std=2.4, high=13.3, low=-13.3):
    """The level that a share 1 − t of the cut normal law lies below, from either tail."""
    law = stats.truncnorm((low - mean) / std, (high - mean) / std, mean, std)
    return lambda t: np.where(t < 0.5, law.isf(t), law.ppf(1 - t))


def stretched(log_snr_of, time_of, high=13.3, low=-13.3):
    """λ of the schedule's own time, which runs between the times of the two ends."""
    first, last = time_of(high), time_of(low)
    return lambda t: log_snr_of(first + (last - first) * t)


PUBLISHED = {
    "linear": lambda t: 13.3 - 26.6 * t,
    "cosine": stretched(
        lambda tau: -2 * np.log(np.tan(np.pi * tau / 2)),
        lambda lam: 2 / np.pi * np.arctan(np.exp(-lam / 2)),
    ),
    "beta_linear": lambda t: (
        -np.log(
            np.expm1(
                np.log1p(np.exp(-13.3)) + (np.log1p(np.exp(13.3)) - np.log1p(np.exp(-13.3))) * t**2
            )
        )
    ),
    "flow_matching": stretched(
        lambda tau: 2 * np.log((1 - tau) / tau), lambda lam: 1 / (1 + np.exp(lam / 2))
    ),
    "edm": quantile(),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_fixed_schedules_are_the_published_ones(name):
    t = np.linspace(0, 1, 49)
    ours = curve(getattr(schedules, name)(13.3, -13.3))(jnp.asarray(t))
    np.testing.assert_allclose(ours, PUBLISHED[name](t), atol=1e-8)


@pytest.mark.float32
@pytest.mark.parametrize("name", PUBLISHED)
def test_both_tails_are_kept_in_float32(name):
    near = np.geomspace(1e-6, 0.5, 60)
    t = np.concatenate([[0.0], near, 1 - near, [1.0]]).astype(np.float32)
    ours = curve(getattr(schedules, name)(13.3, -13.3))(jnp.asarray(t))
    assert ours.dtype == jnp.float32
    exact = PUBLISHED[name](t.astype(np.float64))
    np.testing.assert_allclose(ours, exact, atol=2e-5)


def test_edm_law_of_other_arguments():
    t = np.linspace(0, 1, 49)
    ours = curve(schedules.edm(9.0, -4.0, mean=-1.0, std=3.0))(jnp.asarray(t))
    np.testing.assert_allclose(ours, quantile(-1.0, 3.0, 9.0, -4.0)(t), atol=1e-8)


def test_beta_linear_is_that_of_the_paper():
    t = np.linspace(0, 1, 49)
    ours = curve(schedules.beta_linear())(jnp.asarray(t))
    np.testing.assert_allclose(ours, -np.log(np.expm1(1e-4 + 10 * t**2)), atol=1e-10)


def test_ddpm_chain_is_the_product_of_its_betas():
    schedule = schedules.from_betas(DDPM)
    kept = np.cumprod(1 - DDPM)
    expected = np.log(kept / (1 - kept))
    at, between = np.split(
        np.asarray(curve(schedule)(np.append(np.arange(1000), np.arange(999) + 0.25) / 999)), [1000]
    )
    np.testing.assert_allclose(at, expected, atol=1e-9)
    np.testing.assert_allclose(between, 0.75 * expected[:-1] + 0.25 * expected[1:], atol=1e-9)
    assert (schedule.log_snr_max, schedule.log_snr_min) == pytest.approx(expected[[0, -1]])


def test_the_rate_at_a_step_of_a_chain_is_that_of_the_interval_it_begins():
    schedule = PiecewiseLinear((6.0, 5.0, 1.0, -3.0, -4.0))
    _, rate = levels_and_rates(schedule, fresh(schedule), np.arange(5) / 4)
    np.testing.assert_allclose(rate, [-4, -16, -16, -4, -4], rtol=1e-12)


@pytest.mark.parametrize(
    ("log_snrs", "message"),
    [((1.0,), "at least 2 noise levels: got 1"), ((3.0, 1.0, 2.0), "log_snr_max must be above")],
)
def test_bad_chains(log_snrs, message):
    with pytest.raises(ValueError, match=message):
        PiecewiseLinear(log_snrs)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.1], "at least 2 betas"),
        ([[0.1, 0.2]], "at least 2 betas"),
        ([0.1, 1.0], "between 0 and 1: got 1.0"),
        ([0.1, 0.0, 0.2], "between 0 and 1: got 0.0"),
        ([0.1, float("nan")], "between 0 and 1: got nan"),
    ],
)
def test_bad_betas(betas, message, unchecked):
    with pytest.raises(ValueError, match=message):
        schedules.from_betas(betas)


def shaken(schedule, size, ends=0.05, steps=1000, seed=0):
    """Parameters after many noisy updates of every one of them."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(np.asarray, fresh(schedule))
    for _ in range(steps):
        for group, scale in (("shape", size), ("ends", ends)):
            params[group] = {
                name: (value + scale * rng.normal(size=value.shape)).astype(value.dtype)
                for name, value in params[group].items()
            }
    return jax.tree.map(jnp.asarray, params)


@pytest.fixture(params=[True, False], ids=["optimised", "plain"])
def optimised(request):
    """Compile as users do, or as the other tests do; each rounds in its own way."""
    jax.config.update("jax_disable_most_optimizations", not request.param)
    yield compiled(request.param)
    jax.config.update("jax_disable_most_optimizations", True)


@functools.cache
def compiled(optimised):
    """Compile `levels` once more: what is compiled already is not looked up by how it was."""
    return jax.jit(lambda *args: levels.__wrapped__(*args), static_argnums=0)


@pytest.mark.float32
@pytest.mark.parametrize("learn_ends", [True, False])
@pytest.mark.parametrize("size", [0.01, 0.3, 3.0])
def test_learned_monotone_after_a_thousand_noisy_updates(size, learn_ends, optimised):
    schedule = schedules.learned_monotone(*ENDS, width=257, learn_ends=learn_ends)
    high, low = np.asarray(ENDS, np.float32)
    for seed in (1,):
        params = shaken(schedule, size, seed=seed)
        if learn_ends:
            low = np.asarray(params["ends"]["log_snr_min"])
            high = np.asarray(low + (learned.MIN_RANGE + jax.nn.softplus(params["ends"]["width"])))
            assert high > low and low != -5.0
        jitted = functools.partial(optimised, schedule)
        # Step by step, too, where there is most to see.
        for fn, shapes in ((schedule.log_snr, [(4097,)]), (jitted, [(2,), (4097,), (7, 7)])):
            for shape in shapes:
                t = np.linspace(0.0, 1.0, int(np.prod(shape)), dtype=np.float32).reshape(shape)
                log_snr = np.asarray(fn(params, jnp.asarray(t))).ravel()
                assert log_snr.dtype == np.float32
                np.testing.assert_array_equal(log_snr[[0, -1]], [high, low])
                assert np.all(np.diff(log_snr) < 0)
        np.testing.assert_array_equal(jitted(params, jnp.asarray(0.0)), high)
        np.testing.assert_array_equal(jitted(params, jnp.asarray(1.0)), low)


@pytest.mark.float32
@pytest.mark.parametrize("value", [-200.0, -30.0, 30.0])
def test_a_shape_of_extreme_parameters_is_still_a_schedule(value):
    schedule = schedules.learned_monotone(*ENDS, width=16)
    params = fresh(schedule)
    params["shape"] = jax.tree.map(lambda p: np.full_like(p, value), params["shape"])
    log_snr = np.asarray(levels(schedule, params, np.linspace(0.0, 1.0, 257, dtype=np.float32)))
    assert np.all(np.diff(log_snr) < 0)
    np.testing.assert_allclose(log_snr[[0, -1]], ENDS, atol=1e-5)


def test_learned_monotone_is_the_network_of_the_paper():
    """l1(t) + l3(sigmoid(l2(t))) with positive weights, scaled to run from one end to the other."""
    schedule = schedules.learned_monotone(*ENDS, width=5)
    params = shaken(schedule, 1.0, steps=1)
    shape = {name: np.asarray(value) for name, value in params["shape"].items()}
    low = float(params["ends"]["log_snr_min"])
    high = low + 0.01 + np.log1p(np.exp(float(params["ends"]["width"])))

    def network(t):
        slopes, weights = np.logaddexp(0, shape["hidden_slope"]), np.exp(shape["hidden_weight"])
        hidden = special.expit(np.multiply.outer(t, slopes) + shape["hidden_bias"])
        total = np.exp(shape["weight"]) + weights.sum()
        return (0.01 + np.exp(shape["weight"]) / total) * t + hidden @ weights / total

    t = np.linspace(0, 1, 49)
    position = (network(t) - network(0.0)) / (network(1.0) - network(0.0))
    ours = levels(schedule, params, t)
    np.testing.assert_allclose(ours, high + (low - high) * position, atol=1e-9)


def test_ends_and_interior_are_learned_apart():
    schedule = schedules.learned_monotone(*ENDS, width=7)
    params = shaken(schedule, 0.3, steps=3)

    def position(params):
        high, here, low = schedule.log_snr(params, jnp.asarray([0.0, 0.3, 1.0]))
        return (high - here) / (high - low), (high, low)

    slope = jax.jit(jax.grad(lambda params: position(params)[0]))(params)
    for gradient in slope["ends"].values():
        np.testing.assert_allclose(gradient, 0.0, atol=1e-14)
    assert all(np.any(np.abs(gradient) > 1e-4) for gradient in slope["shape"].values())
    for at_end in jax.jit(jax.jacrev(lambda params: position(params)[1]))(params):
        for gradient in at_end["shape"].values():
            np.testing.assert_allclose(gradient, 0.0, atol=1e-12)


def test_learned_unpinned_is_the_published_network():
    """|k₁|t + b₁ + Σ|k₃|·2(sigmoid((2t − 1)|k₂| + b₂) − ½)/width in γ = −λ, whatever the signs."""
    rng = np.random.default_rng(0)
    schedule = schedules.learned_unpinned(*ENDS, width=7)
    params = schedule.init(jax.random.key(0))
    assert params["shape"] == {}
    moved = {
        name: np.asarray(value) + 3.0 * rng.normal(size=value.shape)
        for name, value in params["ends"].items()
    }
    moved["slope"] = -moved["slope"]
    assert all((moved[name] < 0).any() for name in ("slope", "hidden_slope", "hidden_weight"))
    t = np.linspace(0, 1, 49)
    inner = np.multiply.outer(2 * t - 1, np.abs(moved["hidden_slope"])) + moved["hidden_bias"]
    hidden = 2 * (special.expit(inner) - 0.5) @ np.abs(moved["hidden_weight"]) / 7
    gamma = np.abs(moved["slope"]) * t - moved["offset"] + hidden
    params = {"ends": {k: jnp.asarray(v) for k, v in moved.items()}, "shape": {}}
    np.testing.assert_allclose(schedule.log_snr(params, jnp.asarray(t)), -gamma, rtol=1e-13)
    back = schedule.inverse(params, jnp.asarray(-gamma))
    np.testing.assert_allclose(back, t, atol=1e-12)


def test_learned_unpinned_starts_near_its_ends_with_many_small_units():
    schedule = schedules.learned_unpinned(*ENDS)
    ends = jax.tree.map(np.asarray, fresh(schedule)["ends"])
    assert not np.any(ends["hidden_bias"]) and ends["hidden_bias"].shape == (1024,)
    for name in ("hidden_slope", "hidden_weight"):
        # The standard deviation of 1024 draws is known to 1/√2048; five of these.
        np.testing.assert_allclose(np.std(ends[name]), 0.01, rtol=5 / np.sqrt(2048))
    assert abs(np.corrcoef(ends["hidden_slope"], ends["hidden_weight"])[0, 1]) < 5 / 32
    np.testing.assert_allclose(curve(schedule)(np.asarray([0.0, 1.0])), ENDS, atol=1e-4)


@pytest.mark.parametrize("learned_schedule", [schedules.learned_linear, schedules.learned_monotone])
@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize("width", [-500.0, -30.0, 0.0, 1e4])
@pytest.mark.parametrize("low", [-40.0, 25.0])
def test_learned_ends_stay_in_order(learned_schedule, width, low, precision):
    schedule = learned_schedule(*ENDS)
    params = fresh(schedule)
    params["ends"] = {"log_snr_min": low, "width": width}
    params = jax.tree.map(lambda p: np.asarray(p, precision), params)
    high, low = np.asarray(levels(schedule, params, np.asarray([0.0, 1.0], precision)))
    assert high.dtype == precision and high - low >= 0.0099


@pytest.mark.parametrize("learned_schedule", [schedules.learned_linear, schedules.learned_monotone])
def test_learned_ends_that_start_too_near(learned_schedule):
    with pytest.raises(ValueError, match=r"more than 0.01 apart"):
        learned_schedule(1.005, 1.0)


def test_ends_that_are_not_learned_may_be_near():
    schedules.learned_monotone(1.005, 1.0, learn_ends=False)


@pytest.mark.parametrize("width", [0, -1, 2.5])
@pytest.mark.parametrize("of", [schedules.learned_monotone, schedules.learned_unpinned])
def test_bad_width(of, width, unchecked):
    with pytest.raises(ValueError, match="width must be a whole number"):
        of(*ENDS, width=width)


@pytest.mark.parametrize(
    "law", [{"std": 0.0}, {"std": -1.0}, {"std": float("inf")}, {"mean": float("nan")}]
)
def test_bad_edm_law(law):
    with pytest.raises(ValueError, match="std positive"):
        schedules.edm(*ENDS, **law)


def test_learned_parameters_are_the_ends_alone():
    schedule = schedules.learned_linear(*ENDS)
    params = fresh(schedule)
    assert set(params["ends"]) == {"log_snr_min", "width"} and params["shape"] == {}
    slope = 1 / (1 + np.exp(-float(params["ends"]["width"])))
    gradient = jax.jit(jax.grad(schedule.log_snr))
    for t in (0.0, 0.25, 1.0):
        at = gradient(params, jnp.asarray(t))["ends"]
        np.testing.assert_allclose(at["log_snr_min"], 1.0, rtol=1e-12)
        np.testing.assert_allclose(at["width"], (1 - t) * slope, rtol=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine", "edm", "flow_matching", "from_betas"])
def test_fixed_schedules_have_no_parameters(name):
    assert ALL[name].init(jax.random.key(0)) == {"ends": {}, "shape": {}}


@constructors
def test_schedules_are_equal_by_value(constructor):
    assert constructor(*ENDS) == constructor(*ENDS)
    assert hash(constructor(*ENDS)) == hash(constructor(*ENDS))
    assert constructor(*ENDS) != constructor(13.0, -5.0)


@constructors
def test_reversed_ends(constructor):
    with pytest.raises(ValueError, match=r"log_snr_max=-5.0.*reversed"):
        constructor(-5.0, 13.3)
    with pytest.raises(ValueError, match="above"):
        constructor(1.0, 1.0)


@constructors
@pytest.mark.parametrize("ends", [(float("inf"), -5.0), (13.3, float("nan"))])
def test_ends_that_are_not_finite(constructor, ends):
    with pytest.raises(ValueError, match="finite"):
        constructor(*ends)


def test_shift_that_is_not_finite():
    with pytest.raises(ValueError, match="shift must be finite"):
        schedules.cosine(*ENDS, shift=float("nan"))
