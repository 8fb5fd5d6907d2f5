"""The options of a solve as values, beside the older keywords that say the same."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import keys
from vdm import VDM, ode
from vdm.likelihoods import discretised
from vdm.ode import flow
from vdm.schedules import linear

ENDS = {"log_snr_max": 6.0, "log_snr_min": -5.0}
Z = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))


def eps_fn(z, log_snr):
    return 0.4 * jnp.tanh(z + jnp.flip(z, -1)) + 0.1 * log_snr


class Network(nn.Module):
    """The same for a model."""

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train):
        return eps_fn(z, log_snr[:, None])


MODEL = VDM(linear(6.0, -5.0), Network(), discretised(8))


def log_prob(**options):
    return ode.log_prob(keys(0, 5), eps_fn, Z, **ENDS, **options)


def solve(**options):
    return ode.solve(keys(0, 5), eps_fn, Z, **ENDS, **options)


def encode(**options):
    return ode.encode(eps_fn, Z, **ENDS, **options)


def decode(**options):
    return ode.decode(eps_fn, Z, **ENDS, **options)


def log_weights(fn=MODEL.log_weights, **options):
    params = {"schedule": {"ends": {}, "shape": {}}, "network": {}}
    return fn(params, keys(0, 5), jnp.full((5, 2), 3), **options)


def log_likelihood(**options):
    return log_weights(MODEL.log_likelihood, **options)


SOLVES = [log_prob, solve, log_weights, log_likelihood]
CARRIES = [encode, decode]


class Asked(Exception):
    """Raised in place of a solve."""


@pytest.fixture
def asked(monkeypatch):
    """Return what a call asks the inner functions for, (divergence, steps), and solve nothing."""

    def integrator(steps):
        seen["steps"] = steps

        def integrate(field, state):
            raise Asked

        return integrate

    def draw_probes(key, shape, divergence, dtype):
        seen["divergence"] = divergence
        raise Asked

    seen = {}
    monkeypatch.setattr(flow, "integrator", integrator)
    monkeypatch.setattr(flow, "draw_probes", draw_probes)

    def ask(fn, **options):
        seen.clear()
        with pytest.raises(Asked):
            fn(**options)
        return dict(seen)

    return ask


@pytest.mark.parametrize("fn", [*SOLVES, *CARRIES])
def test_both_spellings_of_the_steps_ask_for_the_same(fn, asked):
    for older, steps in [
        ({}, None),
        ({"num_steps": 9}, 9),
        ({"rtol": 1e-3, "atol": 1e-4}, ode.adaptive(rtol=1e-3, atol=1e-4)),
        ({"rtol": 1e-3}, ode.adaptive(rtol=1e-3, atol=1e-5)),
        ({"atol": 1e-3}, ode.adaptive(rtol=1e-5, atol=1e-3)),
    ]:
        assert asked(fn, **older)["steps"] == asked(fn, steps=steps)["steps"] == steps


@pytest.mark.parametrize("fn", SOLVES)
def test_both_spellings_of_the_divergence_ask_for_the_same(fn, asked):
    got = asked(fn, divergence="hutchinson", num_probes=3, num_steps=2)
    assert got == {"divergence": ode.hutchinson(3), "steps": 2}
    assert asked(fn, divergence=ode.hutchinson(num_probes=3), steps=2) == got
    for name in ("exact", "hutchinson"):
        assert asked(fn, divergence=name)["divergence"] == name
    assert asked(fn)["divergence"] == "exact"


@pytest.fixture
def one_step(monkeypatch):
    """Make every solve one step of Euler's method, and list the steps that were asked for."""
    seen = []

    def integrator(steps):
        def integrate(field, state):
            rates = field(jnp.asarray(0.3), state, None)
            return jax.tree.map(jnp.add, state, rates), jnp.asarray(7)

        seen.append(steps)
        return integrate

    monkeypatch.setattr(flow, "integrator", integrator)
    return seen


def test_log_prob_is_that_of_solve(one_step):
    options = {"divergence": ode.hutchinson(3), "steps": 4}
    np.testing.assert_array_equal(log_prob(**options), solve(**options).log_prob)
    assert one_step == [4, 4]


def test_values_are_compared_and_hashed_by_what_they_hold():
    assert ode.hutchinson() == ode.hutchinson(num_probes=1) != ode.hutchinson(2)
    assert ode.adaptive() == ode.adaptive(rtol=1e-5, atol=1e-5) != ode.adaptive(atol=1e-6)
    assert (
        len({ode.hutchinson(4), ode.hutchinson(num_probes=4), ode.adaptive(), ode.adaptive()}) == 2
    )


def test_a_function_is_traced_once_for_equal_values(one_step):
    run = jax.jit(
        functools.partial(ode.log_prob, eps_fn=eps_fn, **ENDS),
        static_argnames=("divergence", "steps"),
    )
    for num_probes, rtol, traces in ((4, 1e-3, 1), (4, 1e-3, 1), (5, 1e-3, 2), (5, 1e-4, 3)):
        divergence, steps = ode.hutchinson(num_probes), ode.adaptive(rtol=rtol)
        run(keys(0, 5), z_0=Z, divergence=divergence, steps=steps)
        assert len(one_step) == traces


@pytest.mark.parametrize("fn", [*SOLVES, *CARRIES])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_tolerances_that_are_not_positive(fn, value):
    for name in ("rtol", "atol"):
        with pytest.raises(ValueError, match=f"^{name} must be positive and finite: got {value}"):
            ode.adaptive(**{name: value})
        with pytest.raises(ValueError, match=f"^{name} must be positive and finite: got {value}"):
            fn(**{name: value})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("fn", [*SOLVES, *CARRIES])
@pytest.mark.parametrize("number", [0, -3, 2.5])
def test_number_of_steps(fn, number):
    with pytest.raises(ValueError, match=r"^num_steps must be a whole number.*got"):
        fn(num_steps=number)
    with pytest.raises(ValueError, match=r"^steps.* must be a whole number of at least 1: got"):
        fn(steps=number)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("number", [0, -2, 2.5])
def test_number_of_probes(number):
    for make in (ode.hutchinson, lambda n: log_prob(divergence="hutchinson", num_probes=n)):
        with pytest.raises(ValueError, match=r"^num_probes must be a whole number of at least 1"):
            make(number)


@pytest.mark.parametrize("fn", SOLVES)
def test_pairs_that_do_not_go_together(fn):
    wrong = [
        ({"num_probes": 3}, r"exact divergence takes no probes: got num_probes=3.*'hutchinson'"),
        ({"num_steps": 3, "atol": 1e-3}, r"no tolerances: got num_steps=3, atol=0.001, expected"),
        (
            {"divergence": ode.hutchinson(2), "num_probes": 2},
            r"given twice: got divergence=Hutchinson\(num_probes=2\) with num_probes=2",
        ),
        ({"steps": 3, "num_steps": 3}, r"given twice: got steps=3 with num_steps=3"),
        (
            {"steps": ode.adaptive(), "rtol": 1e-3},
            r"given twice: got steps=Adaptive\(rtol=1e-05, atol=1e-05\) with rtol=0.001",
        ),
        ({"divergence": "exakt"}, r"unknown divergence 'exakt'.*Did you mean 'exact'"),
        ({"divergence": "hutchison", "num_probes": 2}, r"unknown divergence.*'hutchinson'"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            fn(**options)


@pytest.mark.parametrize("fn", CARRIES)
def test_steps_that_do_not_go_together(fn):
    with pytest.raises(ValueError, match=r"no tolerances: got num_steps=3, rtol=0.001, expected"):
        fn(num_steps=3, rtol=1e-3)
    with pytest.raises(ValueError, match=r"given twice: got steps=3 with atol=0.001"):
        fn(steps=3, atol=1e-3)
