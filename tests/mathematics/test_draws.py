"""Draws per example depend on that example's key and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from oracles import keys
from vdm import draws


def test_one_key_draws_the_batch_as_a_whole():
    key = jax.random.key(3)
    np.testing.assert_array_equal(
        draws.normal(key, (5, 2), jnp.float32), jax.random.normal(key, (5, 2), jnp.float32)
    )


def test_rows_follow_their_keys():
    batch = keys(0, 7)
    rows = draws.normal(batch, (7, 2, 3))
    order = np.array([4, 2, 6])
    np.testing.assert_array_equal(draws.normal(batch[order], (3, 2, 3)), rows[order])


@pytest.mark.parametrize("per_example", [False, True])
def test_draws_are_standard_normal_and_split_keys_differ(per_example):
    key = keys(1, 49) if per_example else jax.random.key(1)
    first, second = (draws.normal(k, (49, 40)) for k in draws.split(key, 2))
    folded = draws.normal(draws.fold_in(key, 2), (49, 40))
    for sample in (first, second, folded):
        assert stats.kstest(np.ravel(sample), "norm").pvalue > 1e-4
    everything = np.stack([np.ravel(v) for v in (first, second, folded)])
    correlation = np.corrcoef(everything) - np.eye(3)
    assert np.max(np.abs(correlation)) < 5 / np.sqrt(49 * 40)


@pytest.mark.parametrize("per_example", [False, True])
def test_uniform_draws_and_signs(per_example):
    batch = keys(1, 49) if per_example else jax.random.key(1)
    u = np.asarray(draws.uniform(batch, (49, 40)))
    assert u.shape == (49, 40) and stats.kstest(u.ravel(), "uniform").pvalue > 1e-4
    signs = np.asarray(draws.rademacher(batch, (49, 40)))
    np.testing.assert_array_equal(np.abs(signs), np.ones((49, 40)))
    assert abs(signs.mean()) < 5 / np.sqrt(signs.size)
    for draw in (draws.uniform, draws.rademacher):
        assert len(np.unique(draw(batch, (49, 40)), axis=0)) == 49
        assert draw(batch, (49, 3), jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("draw", [draws.uniform, draws.rademacher])
def test_uniform_rows_and_signs_follow_their_keys(draw):
    batch, order = keys(0, 7), np.array([4, 2, 6])
    np.testing.assert_array_equal(draw(batch[order], (3, 2, 9)), draw(batch, (7, 2, 9))[order])


def test_split_and_fold_in_act_on_each_key_by_itself():
    batch = keys(2, 5)
    for together, alone in (
        (draws.split(batch, 3)[2], draws.split(batch[1], 3)[2]),
        (draws.fold_in(batch, 8), draws.fold_in(batch[1], 8)),
    ):
        assert together.shape == (5,)
        np.testing.assert_array_equal(jax.random.key_data(together[1]), jax.random.key_data(alone))


@pytest.mark.parametrize("per_example", [False, True])
def test_categories_have_their_probabilities(per_example):
    probs = np.asarray([[0.5, 0.1, 0.4], [0.05, 0.9, 0.05]])
    logits = jnp.log(jnp.broadcast_to(probs, (2001, 2, 3))) + 7.0
    batch = keys(4, 2001)
    drawn = np.asarray(draws.categorical(batch if per_example else jax.random.key(4), logits))
    for row in range(2):
        counts = np.bincount(drawn[:, row], minlength=3)
        assert stats.chisquare(counts, 2001 * probs[row]).pvalue > 1e-3
    if per_example:
        alone = draws.categorical(batch[5:6], logits[5:6])
        np.testing.assert_array_equal(alone[0], drawn[5])


@pytest.mark.parametrize("key", [jax.random.key(0), keys(0, 5)])
def test_keys_that_fit(key):
    draws.check_key(key, 5)


def test_raw_keys_are_refused():
    with pytest.raises(TypeError, match=r"jax\.random\.key\(seed\).*uint32"):
        draws.check_key(jnp.zeros(2, jnp.uint32), 2)


@pytest.mark.parametrize("shape", [(4,), (5, 2), (1,)])
def test_wrong_number_of_keys(shape):
    with pytest.raises(ValueError, match=r"\(\) or \(5,\)"):
        draws.check_key(jax.random.split(jax.random.key(0), shape), 5)
