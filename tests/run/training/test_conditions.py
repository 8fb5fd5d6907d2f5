"""Conditions that may be missing: what networks make of them, and training without a share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from vdm.condition import Conditions, drop_condition, no_condition
from vdm.networks import MLP, UNet
from vdm.run import data
from vdm.run.errors import UserError
from vdm.run.training import parts
from vdm.run.training.batches import make_batch
from vdm.run.training.step import init_state, train_step

FIELDS = jnp.asarray(np.random.default_rng(5).normal(size=(5, 4, 4, 3)))
CLASSES = jnp.asarray([0, 2, 1, 2, 0])
VECTORS = jnp.asarray([[0.5, -1.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0], [3.0, -1.0]])
KINDS = [({"num_classes": 3}, CLASSES), ({"cond_dim": 2}, VECTORS), ({"cond_channels": 3}, FIELDS)]
ALL = {"num_classes": 3, "cond_dim": 2, "cond_channels": 3}
NETWORKS = [
    MLP(width=8, num_blocks=1),
    UNet(channels=4, num_blocks=1, num_groups=2, fourier_exponents=(), attention="none"),
]


def none_of(cond):
    kinds = {1: (3, None), 2: (None, 2), 4: (None, None, (4, 4, 3))}
    return no_condition(len(cond), *kinds[cond.ndim])


def away(network, z, log_snr, cond):
    """Parameters of which none is zero."""
    params = jax.jit(network.init)(jax.random.key(0), z, log_snr, cond)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: np.asarray(p) + 0.3 * rng.normal(size=p.shape), params)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("fields", "cond"), KINDS)
def test_no_condition_is_another_one_and_each_examples_own(network, fields, cond):
    network = network.copy(**fields, optional_cond=True)
    z = np.random.default_rng(2).normal(size=(5, 4, 4, 2))
    log_snr = np.linspace(-3.0, 3.0, 5)
    params, apply = away(network, z, log_snr, cond), jax.jit(network.apply)
    given, nothing, absent = (
        np.asarray(apply(params, z, log_snr, one)) for one in (cond, none_of(cond), None)
    )
    np.testing.assert_array_equal(nothing, absent)
    assert np.all(np.any(given != nothing, axis=(1, 2, 3)))
    mixed = cond.at[1].set(none_of(cond)[1])
    mixed = np.asarray(apply(params, z, log_snr, mixed))
    np.testing.assert_array_equal(mixed[1], nothing[1])
    np.testing.assert_array_equal(np.delete(mixed, 1, 0), np.delete(given, 1, 0))


@pytest.mark.parametrize("network", NETWORKS)
def test_several_conditions_are_each_their_own_part(network):
    network = network.copy(**ALL, optional_cond=True)
    z = np.random.default_rng(2).normal(size=(5, 4, 4, 2))
    log_snr = np.linspace(-3.0, 3.0, 5)
    cond = Conditions(CLASSES, VECTORS, FIELDS)
    params, apply = away(network, z, log_snr, cond), jax.jit(network.apply)
    whole = np.asarray(apply(params, z, log_snr, cond))
    for name, part in cond._asdict().items():
        if part is None:  # the mask, which is of sets alone
            continue
        changed = cond._replace(**{name: part.at[1].set(part[2])})
        found = np.asarray(apply(params, z, log_snr, changed))
        assert np.any(found[1] != whole[1]), name
        np.testing.assert_array_equal(np.delete(found, 1, 0), np.delete(whole, 1, 0))
        # A part that is not given is the part of which nothing is known.
        absent = apply(params, z, log_snr, cond._replace(**{name: None}))
        np.testing.assert_array_equal(
            absent, apply(params, z, log_snr, cond._replace(**{name: none_of(part)}))
        )
    nothing = drop_condition(jax.random.key(0), cond, 1.0)
    np.testing.assert_array_equal(
        apply(params, z, log_snr, nothing), apply(params, z, log_snr, None)
    )
    again = no_condition(5, 3, 2, (4, 4, 3))
    np.testing.assert_array_equal(apply(params, z, log_snr, again), apply(params, z, log_snr, None))


@pytest.mark.parametrize(
    ("cond", "error", "message"),
    [
        (CLASSES, TypeError, r"expected Conditions\(label, vector, field\): got cond of shape"),
        (
            Conditions(CLASSES, VECTORS),
            ValueError,
            "expected cond.field to be floats.*got no field",
        ),
        (
            Conditions(CLASSES, VECTORS[:, :1], FIELDS),
            ValueError,
            r"cond.vector.*got shape \(5, 1\)",
        ),
        (
            Conditions(CLASSES, VECTORS, FIELDS[:, :3]),
            ValueError,
            r"cond.field.*\(5, 4, 4, 3\): got",
        ),
        (Conditions(CLASSES + 1, VECTORS, FIELDS), ValueError, r"in 0..2 of shape \(5,\): got 3"),
        (Conditions(VECTORS[:, 0], VECTORS, FIELDS), TypeError, "cond.label.*integers.*got float"),
        (None, ValueError, "expected cond to be integers.*got cond=None"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(cond, error, message):
    network = NETWORKS[0].copy(**ALL)
    with pytest.raises(error, match=message):
        network.init(jax.random.key(0), jnp.ones((5, 4, 4, 2)), jnp.zeros(5), cond)


def test_a_part_that_the_network_is_not_built_for_is_refused():
    network = NETWORKS[0].copy(cond_dim=2)
    with pytest.raises(ValueError, match="is given vector: got a label as well"):
        network.init(
            jax.random.key(0), jnp.ones((5, 2)), jnp.zeros(5), Conditions(CLASSES, VECTORS)
        )


def test_a_missing_condition_is_learned_and_spoils_no_gradient():
    for fields, cond in KINDS:
        network = NETWORKS[0].copy(**fields, optional_cond=True)
        z, log_snr = jnp.ones((5, 4, 4, 1)), jnp.zeros(5)
        params = away(network, z, log_snr, cond)
        given = cond.at[1].set(none_of(cond)[1])
        squares = jax.grad(lambda p, *args, f=network.apply: jnp.sum(f(p, *args) ** 2))
        gradient = jax.jit(squares)(params, z, log_snr, given)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
        name = {1: "class_embed", 2: "no_cond_embed", 4: "no_field_embed"}[cond.ndim]
        table = gradient["params"][name]["embedding"]
        assert table.shape[0] == (4 if cond.ndim == 1 else 1)
        assert np.any(table[-1] != 0)


@pytest.mark.parametrize(("fields", "cond"), KINDS)
def test_the_share_that_is_dropped(fields, cond):
    many = jnp.concatenate([cond] * 2001)
    dropped = drop_condition(jax.random.key(3), many, 0.3)
    missing = np.asarray(dropped < 0 if cond.ndim == 1 else jnp.isnan(dropped))
    if cond.ndim > 1:
        flat = missing.reshape(len(many), -1)
        missing = flat[:, 0]
        np.testing.assert_array_equal(flat, np.broadcast_to(missing[:, None], flat.shape))
    assert abs(missing.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / len(many))
    np.testing.assert_array_equal(dropped[~missing], many[~missing])


def conditional(rate, **changed):
    network = {**runs.MLP, "num_classes": 3, "optional_cond": True}
    config = runs.points(cond_dropout=rate)
    model = dataclasses.replace(config.model, network={**network, **changed})
    return dataclasses.replace(config, model=model)


@pytest.mark.float32
def test_training_moves_what_stands_for_no_condition_only_where_there_is_some():
    config = conditional(0.5)
    dataset = data.load(config.data, "train")
    _, trainer, condition, _, _ = parts.of(config, dataset)
    batch = make_batch(dataset, condition, config, 0)
    for rate, moves in ((0.5, True), (0.0, False)):
        train = dataclasses.replace(config.train, cond_dropout=rate)
        # Without decay of weights and where the first gradients of an embedding are not zero.
        optimizer = dataclasses.replace(config.optimizer, weight_decay=0.0)
        changed = trainer._replace(
            config=dataclasses.replace(config, train=train, optimizer=optimizer)
        )
        state = jax.jit(functools.partial(init_state, changed))(batch)
        before = state.params["network"]["class_embed"]["embedding"][3]
        step = jax.jit(functools.partial(train_step, trainer=changed))
        for _ in range(12):  # behind layers that start at zero
            state, metrics = step(state, batch)
        after = state.params["network"]["class_embed"]["embedding"][3]
        decayed = before * (np.linalg.norm(after) / np.linalg.norm(before))
        assert bool(np.any(np.abs(after - decayed) > 1e-6)) == moves
        assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: conditional(0.1, optional_cond=False), r"cond_dropout=0.1 needs .*optional_cond"),
        (lambda: conditional(0.0), "optional_cond=True needs train.cond_dropout above 0"),
        (lambda: conditional(0.1, num_classes=None), "optional_cond needs a condition"),
        (
            lambda: conditional(0.1, num_classes=None, cond_dim=2),
            "cond_dim is 2, but mixture:1 has no vectors",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(config, message):
    config = config()
    with pytest.raises(UserError, match=message):
        parts.prepare(config)


@pytest.mark.parametrize(("rate", "bound"), [(-0.1, "at least 0"), (1.0, "below 1")])
def test_a_share_is_from_zero_to_below_one(rate, bound):
    with pytest.raises(UserError, match=f"train.cond_dropout must be {bound}: got {rate}"):
        conditional(rate)
