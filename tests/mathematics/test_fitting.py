"""Fitting in one call: what it converges to, what it reports, what it leaves alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import vdm
from vdm import VDM, bits_per_dim, fitting, likelihoods, noise_levels, schedules

X = np.random.default_rng(0).normal([1.0, -0.5], [0.3, 0.8], (240, 2))
LABELS = np.arange(240) % 3
KEY = jax.random.key(0)
TRACED = []


class Constant(nn.Module):
    """x̂ is one number a dimension and class, whatever z is: its best value is the data's mean."""

    num_classes: int = 1

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        TRACED.append(z.shape)
        table = self.param("mean", nn.initializers.zeros, (self.num_classes, z.shape[1]), float)
        return jnp.broadcast_to(table[0] if cond is None else table[cond], z.shape)


def model(num_classes=1, schedule=None):
    schedule = schedules.linear(3.0, -6.0) if schedule is None else schedule
    return VDM(schedule, Constant(num_classes), likelihoods.gaussian(0.2), "x")


def fit(made, x=X, cond=None, optimizer=None, num_steps=5, batch_size=48, **more):
    params = made.init(KEY, x, cond)
    optimizer = optax.sgd(0.0) if optimizer is None else optimizer
    found = vdm.fit(
        made,
        params,
        x,
        key=jax.random.key(1),
        optimizer=optimizer,
        num_steps=num_steps,
        batch_size=batch_size,
        cond=cond,
        **more,
    )
    return params, *found


def descent(num_steps):
    return optax.adam(optax.cosine_decay_schedule(0.05, num_steps))


@pytest.mark.parametrize("num_classes", [1, 3])
def test_a_constant_comes_to_the_mean_of_its_class(num_classes):
    cond = None if num_classes == 1 else LABELS
    x = X if cond is None else X + 2.0 * LABELS[:, None]
    before, after, history = fit(model(num_classes), x, cond, descent(400), 400)
    classes = np.zeros(240, int) if cond is None else LABELS
    for c in range(num_classes):
        mean, spread = x[classes == c].mean(0), x[classes == c].std(0)
        # Every step weighs its examples by random levels: five standard errors of such a mean.
        error = 5 * spread / np.sqrt((classes == c).sum())
        assert np.all(np.abs(after["network"]["mean"][c] - mean) < error)
    assert history[-20:].mean() < history[:20].mean() - 0.3
    np.testing.assert_array_equal(before["network"]["mean"], 0.0)  # the caller's own


@pytest.mark.parametrize("schedule", [None, schedules.learned_monotone(3.0, -6.0, width=4)])
def test_the_history_is_the_bound_in_bits_per_dimension(schedule):
    made = model(schedule=schedule)
    params, after, history = fit(made, num_steps=200)
    keys = jax.random.split(jax.random.key(2), 240)
    each = bits_per_dim(jax.jit(made.vlb)(params, keys, X).total, 2)
    assert history.shape == (200,)
    # Both are of the same 240 examples; their noise is independent.
    error = np.hypot(history.std() / np.sqrt(200), each.std() / np.sqrt(240))
    assert abs(history.mean() - each.mean()) < 5 * error
    jax.tree.map(np.testing.assert_array_equal, params, after)  # at a rate of zero


def test_the_interior_of_a_schedule_is_trained_too():
    before, after, _ = fit(
        model(schedule=schedules.learned_monotone(3.0, -6.0, width=4)), optimizer=optax.adam(0.01)
    )
    moved = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), before["schedule"]["shape"], after["schedule"]["shape"]
    )
    assert any(jax.tree.leaves(moved))


def test_noise_levels_of_the_callers_own_reach_the_loss():
    asked = []

    def nowhere(key, n):
        asked.append(n)
        return noise_levels.NoiseLevels(jnp.zeros(n), jnp.zeros(n))

    made = model()
    params, _, history = fit(made, noise_levels=nowhere, num_steps=100)
    terms = made.vlb(params, jax.random.split(KEY, 240), X)
    without = bits_per_dim(terms.prior + terms.reconstruction, 2)
    error = np.hypot(history.std() / 10, without.std() / np.sqrt(240))
    assert abs(history.mean() - without.mean()) < 5 * error
    assert set(asked) == {48}
    _, _, times = fit(made, noise_levels=noise_levels.stratified, num_steps=3)
    assert np.all(np.isfinite(times))


def test_an_epoch_passes_once_through_the_data_but_for_a_rest():
    drawn = [np.asarray(i) for i in fitting._batches(KEY, 23, 5, 8)]
    for epoch in (drawn[:4], drawn[4:]):
        assert len(set(np.concatenate(epoch))) == 20
    assert not np.array_equal(drawn[0], drawn[4])


def test_a_step_is_traced_once():
    optimizer, counts = optax.adam(0.1), []
    for num_steps in (1, 12, 3):
        TRACED.clear()
        fit(model(), optimizer=optimizer, num_steps=num_steps)
        counts.append(len(TRACED))
    # The first count holds the step's traces, all of them what it takes to make parameters.
    assert counts[0] > counts[1] == counts[2]


def test_an_optimiser_that_keeps_the_parameters_is_taken():
    before, after, _ = fit(model(), optimizer=optax.contrib.prodigy(), num_steps=3)
    assert np.all(np.isfinite(after["network"]["mean"]))
    np.testing.assert_array_equal(before["network"]["mean"], 0.0)


def test_a_bar_shows_the_loss(capsys):
    _, _, history = fit(model(), num_steps=3, progress=True)
    assert f"loss {history[-1]:.3f} bpd" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1: got 0"),
        ({"batch_size": 241}, "batch_size must be from 1 to the 240 examples: got 241"),
        ({"batch_size": 0}, "batch_size must be from 1"),
    ],
)
def test_what_cannot_be_fitted_is_an_error(changed, message):
    with pytest.raises(ValueError, match=message):
        fit(model(), **changed)


def test_conditions_of_another_number_are_an_error():
    made = model(3)
    with pytest.raises(ValueError, match="one condition for each of 240 examples: got 7"):
        vdm.fit(
            made,
            made.init(KEY, X, LABELS),
            X,
            key=KEY,
            optimizer=optax.sgd(0.1),
            num_steps=1,
            batch_size=2,
            cond=LABELS[:7],
        )
