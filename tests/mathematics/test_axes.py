"""The U-Net of one to three axes: shifts that it commutes with, conditions, memory, refusals."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm.condition import Conditions, no_condition
from vdm.networks import UNet, stacked

SMALL = {"channels": 8, "num_blocks": 1, "num_groups": 4, "fourier_exponents": (0,)}
SHAPES = {1: (2, 12, 1), 2: (2, 6, 4, 1), 3: (2, 2, 6, 4, 1)}
LOG_SNR = np.asarray([-2.0, 5.0])


def normal(seed, shape, dtype="float32"):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape), dtype)


def moved(network, *args, scale=0.3):
    """Parameters that are all away from zero, so that nothing hides behind a zero start."""
    fresh = jax.eval_shape(network.init, jax.random.key(0), *args)
    rng = np.random.RandomState(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), fresh
    )


@functools.partial(jax.jit, static_argnums=0)
def apply(network, params, z, cond=None):
    return network.apply(params, z, jnp.asarray(LOG_SNR, z.dtype), cond)


def error_of_shifts(network, shifts, dtype="float32"):
    """The largest difference between output of the shifted and shifted output, of its spread."""
    axes, shape = network.axes, SHAPES[network.axes]
    z = normal(0, shape, dtype)
    field = normal(1, (*shape[:-1], 2), dtype) if network.cond_channels else None
    params = moved(network, z, jnp.asarray(LOG_SNR, z.dtype), field)
    output = apply(network, params, z, field)

    def shifted(a, shift):
        return None if a is None else jnp.roll(a, shift, axis=tuple(range(1, axes + 1)))

    errors = []
    for shift in shifts:
        other = apply(network, params, shifted(z, shift), shifted(field, shift))
        difference = np.asarray(other - shifted(output, shift), np.float64)
        errors.append(np.abs(difference).max() / np.std(np.asarray(output, np.float64)))
    return errors


def every_shift(axes):
    shifts = itertools.product(*map(range, SHAPES[axes][1:-1]))
    return [shift for shift in shifts if any(shift)]


@pytest.mark.float32
@pytest.mark.parametrize("attention", ["none", "everywhere"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_wrapped_network_commutes_with_every_shift_and_one_with_zeros_does_not(axes, attention):
    network = UNet(**SMALL, axes=axes, padding="wrap", attention=attention, cond_channels=2)
    shifts = every_shift(axes)
    assert max(error_of_shifts(network, shifts)) < 1e-5
    assert min(error_of_shifts(network.clone(padding="zero"), shifts)) > 0.1


@pytest.mark.float32
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_with_levels_only_shifts_by_whole_coarsest_positions_commute(axes):
    network = UNet(
        **SMALL, axes=axes, padding="wrap", attention="everywhere", levels=(1, 1)[: 3 - axes or 1]
    )
    step = 2 ** len(network.levels)
    shifts = every_shift(axes)
    whole = [shift for shift in shifts if not any(n % step for n in shift)]
    assert max(error_of_shifts(network, whole)) < 1e-5
    others = [shift for shift in shifts if shift not in whole]
    assert min(error_of_shifts(network, others)) > 1e-2
    assert min(error_of_shifts(network.clone(padding="zero"), whole)) > 0.1


@pytest.mark.float32
@pytest.mark.parametrize("padding", [("wrap", "zero"), ("zero", "wrap"), ("zero", "wrap", "zero")])
def test_an_axis_wraps_by_itself(padding):
    network = UNet(**SMALL, axes=len(padding), padding=padding)
    along = np.eye(len(padding), dtype=int).tolist()
    for word, error in zip(padding, error_of_shifts(network, along), strict=True):
        assert error < 1e-5 if word == "wrap" else error > 0.1


def test_a_fresh_network_with_levels_returns_z_or_zero():
    network, z = UNet(**SMALL, levels=(2, 1)), normal(0, (2, 8, 4, 1), float)
    params = jax.jit(network.init)(jax.random.key(0), z, LOG_SNR)
    np.testing.assert_array_equal(apply(network, params, z), z)
    np.testing.assert_array_equal(apply(network.clone(residual=False), params, z), 0 * z)


def test_a_level_has_blocks_of_its_own_and_the_others_their_names():
    z = normal(0, (2, 8, 4, 1), float)

    def params(**fields):
        network = UNet(**SMALL, attention="everywhere", **fields)
        return jax.eval_shape(network.init, jax.random.key(0), z, LOG_SNR)["params"]

    plain, leveled = params(), params(levels=(2, 1))
    assert {name: leveled[name] for name in plain} == plain
    kinds = ("block", "attn")
    assert leveled.keys() - plain.keys() == {
        *(f"level_{i}_conv_{side}" for i in (1, 2) for side in ("down", "up")),
        *(f"level_1_{side}_{i}" for kind in kinds for side in (f"down_{kind}",) for i in range(2)),
        *(f"level_1_up_{kind}_{i}" for kind in kinds for i in range(3)),
        *(f"level_2_down_{kind}_0" for kind in kinds),
        *(f"level_2_up_{kind}_{i}" for kind in kinds for i in range(2)),
    }


@pytest.mark.parametrize("axes", [1, 3])
def test_stacked_blocks_and_levels_give_the_same_output_and_gradient(axes):
    fields = {**SMALL, "num_blocks": 2, "attention": "none", "dropout": 0.0}
    network = UNet(**fields, axes=axes, padding="wrap", levels=(1,))
    z = normal(0, SHAPES[axes], float)
    params = moved(network, z, LOG_SNR)
    held = stacked.stack(params)
    assert {name for name in held["params"] if name.endswith("*")} == {
        "down_block_*",
        "up_block_*",
    }
    gradient = jax.jit(jax.value_and_grad(functools.partial(loss, network)))
    (one, back), (other, held_back) = gradient(params, z), gradient(held, z)
    np.testing.assert_allclose(other, one, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(back))
    for a, b in zip(*map(jax.tree.leaves, (back, stacked.unstack(held_back))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * largest)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("parts", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)])
def test_conditions_of_every_kind_on_any_number_of_axes(axes, optional, parts):
    shape = SHAPES[axes]
    fields = dict(zip(("num_classes", "cond_dim", "cond_channels"), (3, 2, 2), strict=True))
    given = Conditions(
        jnp.asarray([0, 2]), normal(2, (2, 2), float), normal(3, (*shape[:-1], 2), float)
    )
    chosen = {name: n for (name, n), part in zip(fields.items(), parts, strict=True) if part}
    cond = Conditions(
        *(value if part else None for value, part in zip(given[:3], parts, strict=True))
    )
    network = UNet(**SMALL, axes=axes, padding="wrap", **chosen, optional_cond=optional)
    z = normal(0, shape, float)
    params = moved(network, z, jnp.asarray(LOG_SNR, z.dtype), cond)
    output = apply(network, params, z, cond)
    assert output.shape == shape
    for name in cond._fields:
        if (part := getattr(cond, name)) is None:
            continue
        # The first example is given the second's, and only its output changes.
        other = apply(network, params, z, cond._replace(**{name: part.at[0].set(part[1])}))
        changed = np.any(np.asarray(output != other), axis=tuple(range(1, axes + 2)))
        np.testing.assert_array_equal(changed, [True, False])
    if optional:
        field_shape = (*shape[1:-1], 2) if network.cond_channels else None
        none = no_condition(2, network.num_classes, network.cond_dim, field_shape)
        without = apply(network, params, z, none)
        np.testing.assert_array_equal(without, apply(network, params, z, None))
        assert np.all(np.isfinite(without))
        assert np.any(without != output)


def loss(network, params, z):
    return jnp.sum(jnp.sin(network.apply(params, z, jnp.asarray(LOG_SNR, z.dtype), train=True)))


@pytest.mark.parametrize("axes", [1, 3])
def test_remat_changes_no_number(axes):
    network = UNet(**SMALL, axes=axes, padding="wrap", attention="everywhere", dropout=0.0)
    z = normal(0, SHAPES[axes], float)
    params = moved(network, z, jnp.asarray(LOG_SNR, z.dtype))
    results = [
        jax.jit(jax.value_and_grad(functools.partial(loss, one)))(params, z)
        for one in (network, network.clone(remat=True))
    ]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(results[0]))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * largest)


@pytest.mark.parametrize("attention", ["none", "everywhere"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_with_remat_the_backward_pass_is_kept_the_input_of_each_block_alone(axes, attention):
    network = UNet(**{**SMALL, "num_blocks": 4}, axes=axes, attention=attention, dropout=0.0)
    z = jax.ShapeDtypeStruct({1: (2, 512, 1), 2: (2, 24, 24, 1), 3: (2, 8, 8, 8, 1)}[axes], float)
    log_snr = jax.ShapeDtypeStruct((2,), float)
    params = jax.eval_shape(network.init, jax.random.key(0), z, log_snr)

    def kept(network):
        """The size of all arrays as large as a block's output, counted in such arrays."""

        def backward(params, z, log_snr):
            return jax.vjp(lambda params: network.apply(params, z, log_snr), params)[1]

        one = math.prod(z.shape) * network.channels
        leaves = jax.tree.leaves(jax.eval_shape(backward, params, z, log_snr))
        return sum(leaf.size for leaf in leaves if leaf.size >= one) / one

    # 4 blocks down, 2 in the middle, 5 up, of which each takes two of the size; and what the end
    # of the network keeps, which is not computed again.
    inputs = 4 + 2 + 2 * 5 + 6
    blocks = 0 if attention == "none" else 4 + 1 + 5
    assert kept(network.clone(remat=True)) <= inputs + blocks
    assert kept(network) > 3 * (inputs + blocks)


@pytest.mark.float32
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_bfloat16_stays_near_float32(axes):
    network = UNet(**SMALL, axes=axes, padding="wrap", attention="everywhere")
    z = normal(0, SHAPES[axes])
    params = moved(network, z, jnp.asarray(LOG_SNR, z.dtype))
    exact = apply(network, params, z)
    near = apply(network.clone(dtype="bfloat16"), params, z)
    assert near.dtype == z.dtype
    error = np.sqrt(np.mean((near - exact) ** 2)) / np.std(exact)
    assert 0 < error < 0.05


def test_equal_networks_are_equal_and_hash_alike():
    one = UNet(padding=["wrap", "zero"], levels=[2, 1])
    other = UNet(padding=("wrap", "zero"), levels=(2, 1))
    assert one == other
    assert hash(one) == hash(other)
    assert UNet(padding="wrap") != UNet() != UNet(axes=1)


def test_the_parameters_do_not_depend_on_the_padding_nor_on_the_size():
    z, log_snr = jnp.zeros((1, 8, 1)), jnp.zeros(1)
    params = [
        jax.jit(UNet(**SMALL, axes=1, padding=padding).init)(jax.random.key(0), of, log_snr)
        for padding in ("zero", "wrap")
        for of in (z, z[:, :5])
    ]
    for other in params[1:]:
        jax.tree.map(np.testing.assert_array_equal, params[0], other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"axes": 4}, "axes must be 1, 2 or 3, the number of spatial axes: got 4"),
        ({"axes": 0}, "axes must be 1, 2 or 3, .*got 0"),
        ({"axes": 2.0}, "axes must be 1, 2 or 3, .*got 2.0"),
        ({"axes": "2"}, "axes must be 1, 2 or 3, .*got '2'"),
        ({"axes": None}, "axes must be 1, 2 or 3, .*got None"),
        ({"padding": "warp"}, "unknown padding 'warp'.* Did you mean 'wrap'"),
        ({"padding": ("zeros", "wrap")}, "unknown padding 'zeros'.* Did you mean 'zero'"),
        ({"padding": None}, "padding must be zero or wrap, or one of them .*got None"),
        ({"padding": (None, "zero")}, r"padding must be zero or wrap, .*got \(None, 'zero'\)"),
        ({"padding": ("wrap",)}, r"for each of 2 axes: got \('wrap',\)"),
        ({"padding": ()}, r"for each of 2 axes: got \(\)"),
        ({"axes": 3, "padding": ["wrap", "zero"]}, r"for each of 3 axes: got \['wrap', 'zero'\]"),
        ({"levels": 4}, r"levels must be a sequence .*, \(\) for none: got 4"),
        ({"levels": None}, "levels must be a sequence .*got None"),
        ({"levels": "12"}, "levels must be a sequence .*got '12'"),
        ({"levels": (2, 0)}, r"whole numbers of at least 1, .*got \(2, 0\)"),
        ({"levels": [1.5]}, r"whole numbers of at least 1, .*got \[1.5\]"),
    ],
)
def test_refuses_axes_paddings_and_levels_that_do_not_fit(unchecked, fields, message):
    with pytest.raises(ValueError, match=message):
        UNet(**fields)


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        (2, (3, 8, 1), r"\[b, h, w, c\]: got shape \(3, 8, 1\) .*, axes=1 is for \[b, t, c\]"),
        (2, (3, 4, 4, 4, 1), r"\(axes=2\) expects .*axes=3 is for \[b, d, h, w, c\]"),
        (1, (3, 8), r"\[b, t, c\]: got shape \(3, 8\) \(x\[..., None\] adds an axis of one"),
        (3, (3, 4, 4, 1), r"\[b, d, h, w, c\]: .*axes=2 is for \[b, h, w, c\]"),
        (1, (2, 2, 2, 2, 2, 2), r"got shape \(2, 2, 2, 2, 2, 2\)(?! \()"),
    ],
)
def test_refuses_an_example_of_another_number_of_axes(axes, shape, message):
    with pytest.raises(ValueError, match=message):
        UNet(**SMALL, axes=axes).init(jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape[0]))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 30, 9, 1), r"multiples of 4, such as 28×8 or 32×12: got 30×9"),
        (
            (1, 8, 2, 1),
            r"UNet\(levels=\(1, 1\)\) halves every axis 2 times, .*such as 8×4: got 8×2",
        ),
    ],
)
def test_refuses_a_size_that_cannot_be_halved(shape, message):
    with pytest.raises(ValueError, match=message):
        UNet(**SMALL, levels=(1, 1)).init(jax.random.key(0), jnp.zeros(shape), jnp.zeros(1))
