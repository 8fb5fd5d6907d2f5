"""The optimiser: rates, decay and groups, held against their definitions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm.run.config import OptimizerConfig
from vdm.run.training import optim

PARAMS = {
    "schedule": {"ends": {"log_snr_min": jnp.array(-6.0)}, "shape": {"hidden": jnp.zeros(4)}},
    "network": {"dense": {"kernel": jnp.full((2, 3), 0.5), "bias": jnp.full(3, 0.5)}},
}
CONFIG = OptimizerConfig(
    learning_rate=0.1,
    schedule_learning_rate=0.3,
    shape_learning_rate=0.7,
    warmup_steps=0,
    weight_decay=0.2,
    clip_norm=0.0,
)


def first_update(gradient, **changes):
    optimizer = optim.build(dataclasses.replace(CONFIG, **changes), num_steps=10)
    updates, _ = optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)
    return updates


def test_the_rate_warms_up_and_decays():
    config = dataclasses.replace(CONFIG, warmup_steps=4, decay="cosine")
    rate = optim.learning_rate(config, 2.0, 12)
    # Linear to the peak at step 4, then half a cosine over the 8 that remain.
    expected = [0, 0.5, 1.0, 1.5] + [1 + np.cos(np.pi * n / 8) for n in range(9)]
    np.testing.assert_allclose([rate(n) for n in range(13)], expected, atol=1e-6)
    constant = optim.learning_rate(dataclasses.replace(config, decay="constant"), 2.0, 12)
    assert float(constant(11)) == 2.0


def test_a_first_adam_step_has_the_size_of_its_groups_rate():
    updates = first_update(jax.tree.map(lambda p: jnp.full_like(p, 3.0), PARAMS), weight_decay=0.0)
    np.testing.assert_allclose(updates["network"]["dense"]["kernel"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["schedule"]["ends"]["log_snr_min"], -0.3, rtol=1e-5)
    np.testing.assert_allclose(updates["schedule"]["shape"]["hidden"], -0.7, rtol=1e-5)


def test_every_group_is_adam_at_its_own_rate_and_warms_up():
    rates = {"learning_rate": 0.1, "schedule_learning_rate": 0.3, "shape_learning_rate": 0.7}
    betas = {"b1": 0.6, "b2": 0.8}
    config = dataclasses.replace(CONFIG, **rates, **betas, weight_decay=0.0, warmup_steps=2)
    optimizer = optim.build(config, num_steps=10)
    state, first, squares = optimizer.init(PARAMS), 0.0, {0.8: 0.0, 0.999: 0.0}
    for n, size in enumerate([2.0, -1.0, 5.0]):
        gradient = jax.tree.map(lambda p, size=size: jnp.full_like(p, size), PARAMS)
        updates, state = optimizer.update(gradient, state, PARAMS)
        first = 0.6 * first + 0.4 * size
        squares = {b2: b2 * squares[b2] + (1 - b2) * size**2 for b2 in squares}
        unit, shape_unit = (
            min(1.0, n / 2) * first / (1 - 0.6 ** (n + 1)) / np.sqrt(square / (1 - b2 ** (n + 1)))
            for b2, square in squares.items()
        )
        np.testing.assert_allclose(updates["network"]["dense"]["bias"], -0.1 * unit, rtol=1e-5)
        np.testing.assert_allclose(
            updates["schedule"]["ends"]["log_snr_min"], -0.3 * unit, rtol=1e-5
        )
        np.testing.assert_allclose(
            updates["schedule"]["shape"]["hidden"], -0.7 * shape_unit, rtol=1e-5
        )


def test_only_matrices_of_the_network_decay():
    updates = first_update(jax.tree.map(jnp.zeros_like, PARAMS))
    np.testing.assert_allclose(updates["network"]["dense"]["kernel"], -0.1 * 0.2 * 0.5, rtol=1e-6)
    assert not np.any(updates["network"]["dense"]["bias"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates["schedule"]))


def test_network_and_ends_are_clipped_by_their_own_norm_and_the_shape_is_not():
    # Adam's first step is blind to the scale of a gradient; its first moment is not.
    gradient = jax.tree.map(jnp.ones_like, PARAMS)
    gradient["schedule"]["ends"]["log_snr_min"] = jnp.array(1e6)
    gradient["schedule"]["shape"]["hidden"] = jnp.full(4, 1e6)
    optimizer = optim.build(dataclasses.replace(CONFIG, clip_norm=1.0), num_steps=10)
    _, state = optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)
    moments = {
        jax.tree_util.keystr(path): value
        for path, value in jax.tree_util.tree_leaves_with_path(state)
        if ".mu" in jax.tree_util.keystr(path)
    }
    kernel = next(value for path, value in moments.items() if "kernel" in path)
    end = next(value for path, value in moments.items() if "log_snr_min" in path)
    np.testing.assert_allclose(kernel, 0.1 / np.sqrt(9), rtol=1e-6)  # 9 ones clipped to norm 1
    np.testing.assert_allclose(end, 0.1, rtol=1e-6)
    shape = next(value for path, value in moments.items() if "hidden" in path)
    np.testing.assert_allclose(shape, 1e5, rtol=1e-6)


def test_a_number_network_is_treated_as_the_network_and_clipped_by_its_own_norm():
    params = {**PARAMS, "number_law": PARAMS["network"]}
    gradient = jax.tree.map(jnp.ones_like, params)
    gradient["network"] = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e6), PARAMS["network"])
    config = dataclasses.replace(CONFIG, clip_norm=1.0)
    optimizer = optim.build(config, num_steps=10, number_network=True)
    updates, state = optimizer.update(gradient, optimizer.init(params), params)
    # Adam's first step, and decay of matrices alone.
    np.testing.assert_allclose(
        updates["number_law"]["dense"]["kernel"], -0.1 * (1 + 0.2 * 0.5), rtol=1e-5
    )
    np.testing.assert_allclose(updates["number_law"]["dense"]["bias"], -0.1, rtol=1e-5)
    # 9 ones clipped to norm 1, beside a gradient a million times as large.
    moment = next(
        value
        for path, value in jax.tree_util.tree_leaves_with_path(state)
        if ".mu['number_law']['dense']['kernel']" in jax.tree_util.keystr(path)
    )
    np.testing.assert_allclose(moment, 0.1 / np.sqrt(9), rtol=1e-6)
    # A run without one has the state that it always had, which its checkpoints hold.
    plain = optim.build(config, num_steps=10).init(PARAMS)
    assert plain.inner_states.keys() == {"network", "ends", "shape"}


def test_the_average_remembers_more_as_it_goes():
    config = OptimizerConfig(ema_decay=0.99)
    decays = [float(optim.ema_decay(config, jnp.array(n))) for n in (0, 8, 80, 10_000)]
    assert decays == pytest.approx([1 / 10, 9 / 18, 81 / 90, 0.99])
