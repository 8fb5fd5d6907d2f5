"""Schedules: exact ends, a strict fall between them, and an honest rate and inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm import schedules

ENDS = (13.3, -5.0)
SHIFT = 2 * np.log(64 / 8)
ALL = {
    "linear": schedules.linear(*ENDS),
    "cosine": schedules.cosine(*ENDS),
    "shifted": schedules.cosine(*ENDS, shift=SHIFT),
    "learned_linear": schedules.learned_linear(*ENDS),
}
every = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL.keys())
constructors = pytest.mark.parametrize(
    "constructor", [schedules.linear, schedules.cosine, schedules.learned_linear]
)


def curve(schedule):
    params = schedule.init(jax.random.key(0))
    return lambda t: schedule.log_snr(params, t)


@every
@pytest.mark.float32
def test_ends_are_kept_in_float32(schedule):
    ends = curve(schedule)(jnp.asarray([0.0, 1.0]))
    assert ends.dtype == jnp.float32
    units = 0 if isinstance(schedule, schedules.Linear) else 3
    np.testing.assert_array_max_ulp(np.asarray(ends), np.asarray(ENDS, np.float32), units or 0)


@every
@pytest.mark.float32
def test_falls_strictly_in_float32(schedule):
    log_snr = curve(schedule)(jnp.linspace(0.0, 1.0, 4097))
    assert np.all(np.diff(log_snr) < 0)


@every
def test_inverse_gives_the_time_back(schedule):
    params = schedule.init(jax.random.key(0))
    t = jnp.linspace(0.0, 1.0, 49).reshape(7, 7)
    back = schedule.inverse(params, schedule.log_snr(params, t))
    np.testing.assert_allclose(back, t, atol=1e-12)


@every
def test_rate_is_the_slope_of_each_time(schedule):
    t, h = jnp.linspace(0.01, 0.99, 49), 1e-6
    log_snr, rate = schedules.log_snr_and_rate(curve(schedule), t)
    slope = (curve(schedule)(t + h) - curve(schedule)(t - h)) / (2 * h)
    np.testing.assert_allclose(rate, slope, rtol=1e-7)
    np.testing.assert_array_equal(log_snr, curve(schedule)(t))


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


@pytest.mark.parametrize("width", [-500.0, -30.0, 0.0, 1e4])
@pytest.mark.parametrize("low", [-40.0, 25.0])
def test_learned_ends_stay_in_order(width, low):
    schedule = schedules.learned_linear(*ENDS)
    params = schedule.init(jax.random.key(0))
    params["ends"] = {"log_snr_min": jnp.asarray(low), "width": jnp.asarray(width)}
    high, low = schedule.log_snr(params, jnp.asarray([0.0, 1.0]))
    assert high >= low if width < -20 else high > low


def test_learned_parameters_are_the_ends_alone():
    schedule = schedules.learned_linear(*ENDS)
    params = schedule.init(jax.random.key(0))
    assert set(params["ends"]) == {"log_snr_min", "width"} and params["shape"] == {}
    at = lambda t: jax.grad(lambda p: schedule.log_snr(p, jnp.asarray(t)))(params)["ends"]  # noqa: E731
    slope = 1 / (1 + np.exp(-float(params["ends"]["width"])))
    for t in (0.0, 0.25, 1.0):
        np.testing.assert_allclose(at(t)["log_snr_min"], 1.0, rtol=1e-12)
        np.testing.assert_allclose(at(t)["width"], (1 - t) * slope, rtol=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine"])
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
