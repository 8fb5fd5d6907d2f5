"""The training step's gradients, all from one pass, against one direct gradient each."""

import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import keys, within
from trainers import ENDS, INTERIOR, LINEAR, MONOTONE, SIZE, build
from vdm import adaptive, noise_levels, schedules, weightings
from vdm.networks.dropout import Dropout
from vdm.run import mesh as meshes
from vdm.run.config import DevicesConfig
from vdm.run.errors import UserError
from vdm.run.training import division, step as steps
from vdm.run.training.step import Noise, gradients


def compiled(trainer):
    """The gradients of a step, in one program."""
    return jax.jit(functools.partial(gradients, trainer))


def make_noise(positions, seed=0):
    every = keys(seed, SIZE + 1)
    return Noise(positions, every[:SIZE], every[SIZE])


def low_discrepancy():
    return noise_levels.low_discrepancy(keys(7, 1)[0], SIZE)


def bpd(nats):
    return nats / (2 * np.log(2))


def bound(trainer, params, batch, levels, noise, num_steps=None):
    """The terms of the bound with the step's own noise, dropout drawn for the whole batch."""
    dropout_key = Dropout(noise.dropout, jnp.arange(SIZE))
    settings = {"num_steps": num_steps, "dropout_key": dropout_key}
    return trainer.model.vlb(params, noise.keys, batch.x, noise_levels=levels, **settings)


def same(ours, direct, rtol=1e-10):
    assert jax.tree.structure(ours) == jax.tree.structure(direct)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(direct), strict=True):
        assert one.dtype == jnp.float64 and np.any(np.abs(other) > 1e-6)
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * np.abs(other).max())


def with_shape(params, shape):
    return {**params, "schedule": {**params["schedule"], "shape": shape}}


@pytest.mark.parametrize(
    ("draw", "parts"), [("low_discrepancy", 1), ("stratified", 3), ("uniform", 2)]
)
def test_shape_descends_the_variance_and_the_rest_the_bound(draw, parts):
    trainer, state, batch = build(MONOTONE, parts, draw=draw)
    t = getattr(noise_levels, draw)(keys(7, 1)[0], SIZE)
    noise = make_noise(t)
    loss, terms, ours, _ = compiled(trainer)(state, batch, noise)

    def means(params, noise):
        each = bound(trainer, params, batch, t, noise)
        both = jnp.stack([jnp.mean(bpd(each.total)), jnp.mean(jnp.square(bpd(each.diffusion)))])
        return both, both

    jacobian, (value, _) = jax.jit(jax.jacrev(means, has_aux=True))(state.params, noise)
    direct, of_square = (jax.tree.map(lambda leaf, i=i: leaf[i], jacobian) for i in range(2))
    np.testing.assert_allclose([loss, terms.total], value, rtol=1e-12)
    same(ours["network"], direct["network"])
    same(ours["schedule"]["ends"], direct["schedule"]["ends"])
    shape = of_square["schedule"]["shape"]
    same(ours["schedule"]["shape"], shape)
    assert any(
        np.abs(one - other).max() > 0.1 * np.abs(one).max()
        for one, other in zip(
            jax.tree.leaves(shape), jax.tree.leaves(direct["schedule"]["shape"]), strict=True
        )
    )


@pytest.mark.parametrize(
    "weighting", ["v", pytest.param("sigmoid", marks=pytest.mark.long), "edm_monotone"]
)
def test_a_weighted_loss_has_its_own_variance(weighting):
    trainer, state, batch = build(INTERIOR, weighting={"name": weighting})
    t = low_discrepancy()
    noise = make_noise(t)
    loss, terms, ours, _ = compiled(trainer)(state, batch, noise)

    def means(params, noise):
        log_snr = trainer.model.schedule.log_snr(params["schedule"], t)
        weight = getattr(weightings, weighting)(log_snr)
        each = bound(trainer, params, batch, t, noise)
        weighted = bpd(weight * each.diffusion)
        both = jnp.stack([jnp.mean(weighted), jnp.mean(weighted**2)])
        return both, (both[0], each.total)

    jacobian, (value, each) = jax.jit(jax.jacrev(means, has_aux=True))(state.params, noise)
    direct, of_square = (jax.tree.map(lambda leaf, i=i: leaf[i], jacobian) for i in range(2))
    shape = of_square["schedule"]["shape"]
    np.testing.assert_allclose(loss, value, rtol=1e-12)
    np.testing.assert_allclose(terms.total, bpd(np.mean(each)), rtol=1e-12)
    same(ours["network"], direct["network"])
    same(ours["schedule"]["shape"], shape)


def test_only_the_variance_has_a_gradient_in_the_shape_on_average():
    trainer, state, batch = build(MONOTONE, draw="uniform")
    shape = state.params["schedule"]["shape"]

    @jax.jit
    @jax.vmap
    def both(words):
        every = jax.random.split(jax.random.wrap_key_data(words), SIZE + 2)
        t = noise_levels.uniform(every[-1], SIZE)
        noise = Noise(t, every[:SIZE], every[SIZE])

        def mean_bound(shape):
            params = with_shape(state.params, shape)
            return bpd(jnp.mean(bound(trainer, params, batch, t, noise).total))

        _, _, ours, _ = gradients(trainer, state, batch, noise)
        return jax.grad(mean_bound)(shape), ours["schedule"]["shape"]

    of_bound, of_variance = both(jax.random.key_data(keys(3, 2000)))
    assert all(within(leaf, 0.0) for leaf in of_bound.values())
    assert all(np.any(np.abs(leaf) > 1e-6) for leaf in of_bound.values())
    assert not any(within(of_variance[name], 0.0) for name in ("weight", "hidden_weight"))


@pytest.mark.parametrize("law", ["sigmoid", "adaptive"])
@pytest.mark.parametrize(
    ("weighting", "parts", "draw"), [("elbo", 2, "low_discrepancy"), ("v", 1, "uniform")]
)
def test_other_laws_train_the_same_network_on_the_same_loss(law, weighting, parts, draw):
    learned = weighting == "elbo"
    schedule = schedules.learned_linear(*ENDS) if learned else schedules.cosine(*ENDS)
    block = {"name": law}
    if law == "adaptive":
        block |= {"num_bins": 70, "decay": 0.9, "floor": 0.2}
    trainer, state, batch = build(
        schedule, parts, law=block, weighting={"name": weighting}, draw=draw
    )
    if law == "adaptive":
        assert all(part.shape == (70,) for part in state.law_state)
        mass, first, more = np.random.default_rng(4).gamma(1.0, 1.0, (3, 70))
        histogram = (100 * mass, mass, mass * first, mass * (first**2 + more))
        state = state._replace(law_state=adaptive.Histogram(*map(jnp.asarray, histogram)))
    u = low_discrepancy()
    noise = make_noise(u)
    loss, terms, ours, histogram = compiled(trainer)(state, batch, noise)

    def levels_of(params):
        at = functools.partial(trainer.model.schedule.log_snr, params["schedule"])
        ends = at(jnp.asarray(0.0)), at(jnp.asarray(1.0))
        if law == "sigmoid":
            return noise_levels.sigmoid_law(u, *ends)
        weight = None if learned else weightings.v
        even = draw != "uniform"
        kept = state.law_state
        return adaptive.levels(kept, u, *ends, stratified=even, floor=0.2, weighting=weight)

    def mean_loss(params, noise):
        levels = levels_of(params)
        terms = bound(trainer, params, batch, levels, noise)
        if learned:
            return bpd(jnp.mean(terms.total)), (levels, terms)
        weight = jnp.exp(-0.5 * levels.log_snr)
        return bpd(jnp.mean(weight * terms.diffusion)), (levels, terms)

    directly = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
    (value, (levels, each)), direct = directly(state.params, noise)
    np.testing.assert_allclose(loss, value, rtol=1e-12)
    same(ours, direct)
    np.testing.assert_allclose(terms.total, bpd(jnp.mean(each.total)), rtol=1e-12)
    if law == "sigmoid":
        assert histogram == ()
        return
    error = 2 * np.asarray(each.diffusion / levels.inverse_density)
    high, low = trainer.model.schedule.log_snr(state.params["schedule"], jnp.asarray([0.0, 1.0]))
    bins = np.floor((high - np.asarray(levels.log_snr)) / (high - low) * 70).astype(int)
    expected = [np.array(part) for part in state.law_state]
    assert len(set(bins.tolist())) == SIZE
    for k, value in zip(bins, error, strict=True):
        expected[0][k] += 1
        for part, new in zip(expected[1:], (1.0, value, value**2), strict=True):
            part[k] = 0.9 * part[k] + 0.1 * new
    for part, other in zip(histogram, expected, strict=True):
        np.testing.assert_allclose(part, other, rtol=1e-10)


def one_step(trainer, state, batch, monkeypatch):
    """A training step, with the noise that it drew and the gradients that it got."""
    seen = []

    def spy(trainer, state, batch, noise, division):
        assert division is None
        seen.append((noise, gradients(trainer, state, batch, noise)))
        return seen[0][1]

    monkeypatch.setattr(steps, "gradients", spy)
    return jax.jit(lambda: (*steps.train_step(state, batch, trainer=trainer), *seen))()


@pytest.mark.parametrize("weighting", ["elbo", "v"])
def test_a_step_is_one_of_the_optimiser_and_of_the_average(weighting, monkeypatch):
    law = {"name": "adaptive", "num_bins": 9}
    trainer, state, batch = build(LINEAR, 2, law=law, weighting={"name": weighting})
    ema = jax.tree.map(lambda p: p + 1.0, state.params)
    state = state._replace(step=jnp.asarray(5, jnp.int32), ema=ema)
    after, metrics, (_, (loss, terms, gradient, levels)) = one_step(
        trainer, state, batch, monkeypatch
    )
    assert len(levels.mass) == 9
    update = jax.jit(trainer.optimizer.update)
    updates, opt_state = update(gradient, state.opt_state, state.params)
    params = jax.tree.map(jnp.add, state.params, updates)
    average = jax.tree.map(lambda old, new: 0.4 * old + 0.6 * new, ema, params)  # 6/15 of the old
    expected = steps.TrainState(
        jnp.asarray(6, jnp.int32), params, average, opt_state, levels, state.rollbacks
    )
    chex.assert_trees_all_close(after, expected, rtol=1e-10)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    expected = {
        **{"loss": terms.total, **terms._asdict(), "gradient_norm": norm},
        **{"log_snr_max": ENDS[0], "log_snr_min": ENDS[1]},
        **({} if weighting == "elbo" else {"objective": loss}),
    }
    assert set(metrics) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-10)
    assert weighting == "elbo" or not np.isclose(loss, terms.total)


@pytest.mark.parametrize(
    ("draw", "parts"), [("low_discrepancy", 1), ("stratified", 2), ("uniform", 3)]
)
def test_every_step_draws_its_own_noise_for_every_example(draw, parts, monkeypatch):
    trainer, state, batch = build(LINEAR, parts, draw=draw)
    # The gradients are not looked at.
    nothing = jnp.zeros(()), steps.VLB(*jnp.zeros((3,))), state.params, ()
    monkeypatch.setattr(f"{__name__}.gradients", lambda *args: nothing)
    every = []
    for step in range(4):
        now = state._replace(step=jnp.asarray(step, jnp.int32))
        noise = one_step(trainer, now, batch, monkeypatch)[2][0]
        assert noise.keys.shape == noise.positions.shape == (SIZE,)
        assert noise.dropout.shape == ()
        every.append(noise)
    for leaves in zip(*((*n[1:], n.positions) for n in every), strict=True):
        words = np.concatenate([jax.random.key_data(x) if x.dtype != float else x for x in leaves])
        assert len(np.unique(words, axis=0)) == len(words)
    u = np.sort([n.positions for n in every], axis=1)
    even = np.allclose(np.diff(u, axis=1), 1 / SIZE)
    one_each = np.all(np.floor(u * SIZE) == np.arange(SIZE))
    assert (even, one_each) == {
        "low_discrepancy": (True, True),
        "stratified": (False, True),
        "uniform": (False, False),
    }[draw]


def test_finite_steps_are_a_plain_gradient_of_their_bound():
    trainer, state, batch = build(schedules.learned_linear(*ENDS), num_steps="9")
    t = low_discrepancy()
    noise = make_noise(t)
    loss, _, ours, _ = compiled(trainer)(state, batch, noise)

    def mean_bound(params, noise):
        return bpd(jnp.mean(bound(trainer, params, batch, t, noise, num_steps=9).total))

    value, direct = jax.jit(jax.value_and_grad(mean_bound))(state.params, noise)
    np.testing.assert_allclose(loss, value, rtol=1e-12)
    same(ours, direct)


@pytest.mark.parametrize(("fsdp", "parts"), [(1, 3), (2, 1)])
def test_gradients_do_not_depend_on_the_devices(fsdp, parts, monkeypatch):
    """Two devices that hold three examples each give what one gives with all six, dropout too.

    Both axes at once: tests/several.py.
    """
    monkeypatch.setattr(meshes, "MIN_CUT", 1)
    trainer, state, batch = build(MONOTONE, parts)
    noise = make_noise(low_discrepancy())
    alone = compiled(trainer)(state, batch, noise)
    mesh = meshes.make(DevicesConfig(fsdp=fsdp), jax.devices()[:2])
    assert mesh.size == 2
    spread, whole = meshes.cut(mesh), meshes.whole(mesh)
    shapes = meshes.of_state(mesh, jax.eval_shape(lambda: state))
    places = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    divided = division.of(mesh, shapes.params)
    step = jax.jit(functools.partial(gradients, trainer, division=divided))
    together = step(
        jax.device_put(state, places),
        jax.device_put(batch, spread),
        jax.device_put(noise, Noise(spread, spread, whole)),
    )
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10 * np.abs(one).max())


@pytest.mark.parametrize(("platform", "rounds"), [("cpu", 3), ("tpu", 1), ("cuda", 1)])
def test_micro_batches_are_a_loop_but_on_a_cpu(platform, rounds, unchecked):
    """One device too: what it is decides, not how many there are."""
    trainer, state, batch = build(LINEAR, 3)
    device = types.SimpleNamespace(platform=platform)
    mesh = types.SimpleNamespace(size=1, devices=np.array([[device]]))
    step = functools.partial(gradients, trainer, division=division.Division(mesh, None))
    program = jax.make_jaxpr(step)(state, batch, make_noise(low_discrepancy()))
    (loop,) = (eqn for eqn in program.eqns if eqn.primitive.name == "scan")
    assert (loop.params["length"], int(loop.params["unroll"])) == (3, rounds)


V = {"name": "v"}


@pytest.mark.parametrize(
    ("schedule", "objective", "message"),
    [
        (MONOTONE, {"weighting": V}, "learned end points need the elbo weighting: got 'v'"),
        (
            schedules.learned_linear(*ENDS),
            {"weighting": {"name": "sigmoid", "bias": -1.0}},
            "narrowing the range",
        ),
        (
            schedules.learned_unpinned(*ENDS, width=5),
            {"weighting": V},
            "learned end points need the elbo weighting: got 'v'",
        ),
        (MONOTONE, {"law": {"name": "sigmoid"}}, "learned interior needs the law 'schedule'"),
        (INTERIOR, {"law": {"name": "adaptive"}}, "got 'adaptive'.*no influence"),
        (INTERIOR, {"num_steps": "10"}, "num_steps = 10 needs.*no learned interior"),
        (LINEAR, {"num_steps": "10", "weighting": V}, "num_steps = 10 needs the elbo"),
        (LINEAR, {"num_steps": "10", "law": {"name": "adaptive"}}, "the law 'schedule'"),
        (LINEAR, {"num_steps": "0"}, "num_steps must be a whole number .* or inf: got '0'"),
        (LINEAR, {"num_steps": "ten"}, "num_steps must be a whole number .* or inf: got 'ten'"),
        (LINEAR, {"draw": "stratifed"}, "unknown objective.draw.*mean 'stratified'"),
        (LINEAR, {"law": {"name": "adaptiv"}}, "unknown objective.law.*mean 'adaptive'"),
        (
            LINEAR,
            {"weighting": {"name": "edm_monoton"}},
            "unknown objective.weighting.*mean 'edm_monotone'",
        ),
        (
            LINEAR,
            {"weighting": {"name": "sigmoid", "bais": 1.0}},
            "unknown argument of objective.weighting sigmoid 'bais'.*mean 'bias'",
        ),
        (
            LINEAR,
            {"law": {"name": "adaptive", "bins": 9}},
            "unknown argument of objective.law adaptive 'bins'.*mean 'num_bins'",
        ),
        (LINEAR, {"law": {"name": "adaptive", "num_bins": 0}}, "num_bins must be a whole number"),
        (LINEAR, {"law": {"name": "adaptive", "floor": 0.0}}, r"floor in \(0, 1\]"),
        (LINEAR, {"law": {"name": "adaptive", "decay": 1.0}}, r"decay must be in \[0, 1\)"),
        (
            LINEAR,
            {"weighting": {"name": "elbo", "bias": 1.0}},
            "'elbo' takes no arguments: got 'bias'",
        ),
        (LINEAR, {"weighting": {"name": "p2", "k": -1.0}}, "k must be positive: got -1.0"),
        (LINEAR, {"weighting": {"name": "sigmoid", "bias": "a"}}, "weighting.bias must be int or"),
        (LINEAR, {"weighting": {"name": "edm_monotone", "mean": 9.4, "std": 4.0}}, "two peaks"),
    ],
)
def test_refused_objectives(schedule, objective, message, unchecked):
    with pytest.raises(UserError, match=message):
        build(schedule, **objective)


@pytest.mark.parametrize(
    ("schedule", "objective"),
    [
        (INTERIOR, {"weighting": V}),
        (MONOTONE, {"draw": "uniform"}),
        (schedules.learned_linear(*ENDS), {"law": {"name": "adaptive"}}),
        (schedules.learned_linear(*ENDS), {"num_steps": "10"}),
        (LINEAR, {"weighting": V, "law": {"name": "adaptive", "num_bins": 9}}),
    ],
)
def test_objectives_that_are_not_refused(schedule, objective):
    build(schedule, **objective)
