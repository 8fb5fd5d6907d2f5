"""The diffusion transformer: its start, its symmetries, its arithmetic, its conditions."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm import VDM, likelihoods, schedules
from vdm.condition import Conditions
from vdm.networks import DiT, precision, stacked
from vdm.networks.dit import from_patches, to_patches
from vdm.run.training import flops

SMALL = DiT(channels=8, num_blocks=2, num_heads=2, dropout=0.5)
SHAPES = {1: (3, 12, 2), 2: (3, 4, 8, 2), 3: (3, 4, 2, 6, 2)}
EVERY = {axes: SMALL.copy(axes=axes) for axes in SHAPES}


def inputs(shape):
    z = np.random.RandomState(0).normal(size=shape)
    return jnp.asarray(z), jnp.linspace(-4.0, 9.0, shape[0])


def moved(network, *args, scale=0.3):
    """Parameters that are all away from zero, so that nothing hides behind a zero start."""
    fresh = jax.eval_shape(network.init, jax.random.key(0), *args)
    rng = np.random.RandomState(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), fresh
    )


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def apply(network, params, z, log_snr, cond=None, seed=0, *, train=False):
    rngs = {"dropout": jax.random.key(seed)}
    return network.apply(params, z, log_snr, cond, train=train, rngs=rngs)


@pytest.mark.parametrize("axes", SHAPES)
def test_a_fresh_network_returns_z_with_residual_and_zero_without(axes):
    network, (z, log_snr) = EVERY[axes], inputs(SHAPES[axes])
    params = jax.jit(network.init)(jax.random.key(0), z, log_snr)
    np.testing.assert_array_equal(apply(network, params, z, log_snr), z)
    plain = apply(network.copy(residual=False), params, z, log_snr)
    np.testing.assert_array_equal(plain, np.zeros_like(z))
    # As in the paper: the last layer and what modulates start at zero, and nothing else.
    kernels = jax.tree.leaves_with_path(params)
    zero = {path[-2].key for path, leaf in kernels if path[-1].key == "kernel" and not leaf.any()}
    assert zero == {"dense_out", "modulation"}


@pytest.mark.parametrize("axes", SHAPES)
def test_patches_are_cut_and_put_back(axes):
    z, _ = inputs(SHAPES[axes])
    patch = {1: (3,), 2: (2, 4), 3: (2, 1, 3)}[axes]
    tokens = to_patches(z, patch)
    counts = [size // p for size, p in zip(z.shape[1:-1], patch, strict=True)]
    for n, corner in enumerate(itertools.product(*map(range, counts))):
        cut = tuple(slice(i * p, (i + 1) * p) for i, p in zip(corner, patch, strict=True))
        np.testing.assert_array_equal(tokens[:, n], z[:, *cut].reshape(len(z), -1))
    assert tokens.shape[1] == math.prod(counts)
    np.testing.assert_array_equal(from_patches(tokens, patch, z.shape), z)


def test_after_some_steps_every_parameter_has_a_gradient():
    network = SMALL.copy(num_classes=3, cond_channels=2, optional_cond=True, dropout=0.0)
    z, log_snr = inputs(SHAPES[2])
    cond = Conditions(label=jnp.asarray([0, 2, -1]), field=z.at[0].set(jnp.nan))
    params = network.init(jax.random.key(0), z, log_snr, cond)
    optimizer = optax.adam(1e-2)
    state = optimizer.init(params)
    target = jnp.asarray(np.random.RandomState(3).normal(size=z.shape))

    @jax.jit
    def gradient(params):
        loss = lambda p: jnp.mean((network.apply(p, z, log_snr, cond) - target) ** 2)  # noqa: E731
        return jax.grad(loss)(params)

    for _ in range(3):  # the last layer moves first, then what modulates, then the rest
        updates, state = optimizer.update(gradient(params), state)
        params = optax.apply_updates(params, updates)
    for path, leaf in jax.tree.leaves_with_path(gradient(params)):
        assert np.abs(leaf).max() > 1e-8, jax.tree_util.keystr(path)


def defect(network, shape, axis, by):
    """How far the network is from commuting with a cyclic shift, against the output's spread."""
    z, log_snr = inputs(shape)
    params = moved(network, z, log_snr)
    shifted = apply(network, params, jnp.roll(z, by, axis), log_snr)
    output = jnp.roll(apply(network, params, z, log_snr), by, axis)
    return np.abs(shifted - output).max() / np.std(output - jnp.roll(z, by, axis))


@pytest.mark.parametrize("axes", SHAPES)
def test_a_wrapped_network_commutes_with_shifts_by_whole_patches(axes):
    network = EVERY[axes].copy(padding="wrap", channels=16)
    shape = SHAPES[axes]
    for axis in range(1, axes + 1):
        for by in range(2, shape[axis], 2):
            assert defect(network, shape, axis, by) < 1e-5
            assert defect(network.copy(padding="zero"), shape, axis, by) > 1e-2
        assert defect(network, shape, axis, 1) > 1e-2  # half a patch


def test_one_axis_can_close_alone():
    network = SMALL.copy(padding=("zero", "wrap"))
    assert defect(network, SHAPES[2], 2, 2) < 1e-5 < 1e-2 < defect(network, SHAPES[2], 1, 2)


def work_by_hand(network, shape):
    """Two FLOPs a product in every linear map and in attention, forward."""
    b, *sizes, c = shape
    tokens, width, p = b * math.prod(sizes) // 4, network.channels, 4 * c
    features = p * (1 + 2 * len(network.fourier_exponents))
    maps = 12 * width**2 + 2 * width * (math.prod(sizes) // 4)
    levels = b * (2 * width**2 + 6 * network.num_blocks * width**2 + 2 * width**2)
    return 2.0 * (tokens * (features * width + network.num_blocks * maps + width * p) + levels)


@pytest.mark.parametrize("padding", ["zero", "wrap"])
def test_arithmetic_by_hand_is_that_of_the_program_and_of_xla(padding):
    network = DiT(channels=128, num_blocks=2, num_heads=4, padding=padding)
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 12, 8, 2), (3,))]
    params = jax.eval_shape(network.init, jax.random.key(0), *args)
    by_hand = work_by_hand(network, args[0].shape)
    assert flops.of(network.apply, params, *args) == by_hand
    of_xla = jax.jit(network.apply).lower(params, *args).compile().cost_analysis()["flops"]
    assert by_hand < of_xla < 1.03 * by_hand  # which counts norms and gelu as well


def gradient_of(network, z, log_snr):
    def total(params):
        options = {"train": True, "rngs": {"dropout": jax.random.key(3)}}
        return jnp.sum(jnp.sin(network.apply(params, z, log_snr, None, **options)))

    return jax.value_and_grad(total)


def test_remat_changes_no_number_and_works_twice():
    z, log_snr = inputs(SHAPES[2])
    params = moved(SMALL, z, log_snr)
    fns = [gradient_of(one, z, log_snr) for one in (SMALL, SMALL.clone(remat=True))]
    results = [jax.jit(fn)(params) for fn in fns]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(results[0][1]))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * largest)
    once, twice = (flops.of(fn, params) for fn in fns)
    assert 1.2 * once < twice < 1.4 * once


def test_remat_spares_memory():
    # A CPU's compiler begins whatever it can at once, and keeps it, unless it is asked not to.
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    z, log_snr = inputs((4, 32, 32, 1))
    network, held = DiT(channels=32, num_blocks=6, num_heads=2, padding="wrap"), []
    for one in (network, network.clone(remat=True)):
        params = jax.eval_shape(one.init, jax.random.key(0), z, log_snr)
        compiled = jax.jit(gradient_of(one, z, log_snr)).lower(params).compile(options)
        held.append(compiled.memory_analysis().temp_size_in_bytes)
    assert held[1] < 0.7 * held[0]


def test_computes_in_the_asked_dtype_with_float32_parameters():
    network = SMALL.copy(padding=("zero", "wrap"))
    z, log_snr = inputs(SHAPES[2])
    params = moved(network, z, log_snr)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    exact = apply(network.copy(dtype="float64"), params, z, log_snr)
    for dtype, least, most in (("bfloat16", 1e-3, 0.2), ("float32", 1e-8, 1e-5)):
        narrow = network.copy(dtype=dtype)
        output = apply(narrow, params, z, log_snr)
        assert output.dtype == z.dtype
        plain = functools.partial(narrow.copy(residual=False).apply, params)
        assert jax.eval_shape(plain, z, log_snr).dtype == z.dtype
        assert least < np.max(np.abs(output - exact)) / np.std(exact - z) < most
        cast = {"params": precision.cast(narrow, params["params"])}
        assert jnp.dtype(dtype) in {leaf.dtype for leaf in jax.tree.leaves(cast)}
        np.testing.assert_array_equal(apply(narrow, cast, z, log_snr), output)


def test_each_example_depends_on_itself_and_on_its_own_noise_level_alone():
    z, log_snr = inputs(SHAPES[2])
    params = moved(SMALL, z, log_snr)
    output = apply(SMALL, params, z, log_snr)
    for other in (
        apply(SMALL, params, z.at[0].add(0.5), log_snr),
        apply(SMALL, params, z, log_snr.at[0].add(0.5)),
    ):
        changed = np.any(np.asarray(output != other), axis=(1, 2, 3))
        np.testing.assert_array_equal(changed, [True, False, False])


def test_drops_out_only_in_training():
    z, log_snr = inputs(SHAPES[2])
    params = moved(SMALL, z, log_snr)
    run = functools.partial(apply, SMALL, params, z, log_snr)
    np.testing.assert_array_equal(run(seed=0), run(seed=1))
    np.testing.assert_array_equal(run(seed=0, train=True), run(seed=0, train=True))
    assert np.any(run(seed=0, train=True) != run(seed=1, train=True))


PARTS = {
    "label": ({"num_classes": 3}, jnp.asarray([0, 2, 1])),
    "vector": ({"cond_dim": 2}, jnp.asarray([[0.5, -1.0], [0.0, 2.0], [1.0, 1.0]])),
    "field": ({"cond_channels": 2}, inputs((3, 4, 8, 2))[0] + 1.0),
}
MIXES = [names for count in (1, 2, 3) for names in itertools.combinations(PARTS, count)]


@pytest.mark.parametrize("names", MIXES)
def test_any_conditions_together_each_the_examples_own_and_none_where_optional(names):
    fields = {key: value for name in names for key, value in PARTS[name][0].items()}
    network = SMALL.copy(**fields, optional_cond=True, num_blocks=1)
    cond = Conditions(**{name: PARTS[name][1] for name in names})
    z, log_snr = inputs(SHAPES[2])
    params = moved(network, z, log_snr, cond)
    output, absent = (apply(network, params, z, log_snr, one) for one in (cond, None))
    assert np.all(np.any(np.asarray(output != absent), axis=(1, 2, 3)))
    for name in names:
        part = getattr(cond, name)
        other = cond._replace(**{name: part.at[0].set(part[1])})
        changed = apply(network, params, z, log_snr, other) != output
        np.testing.assert_array_equal(np.any(changed, axis=(1, 2, 3)), [True, False, False])
        fewer = apply(network, params, z, log_snr, cond._replace(**{name: None}))
        assert np.all(np.any(np.asarray(fewer != output), axis=(1, 2, 3)))
    with pytest.raises(ValueError, match="conditional, expected"):
        network.copy(optional_cond=False).init(jax.random.key(0), z, log_snr)


@pytest.mark.parametrize("axes", SHAPES)
def test_has_all_that_a_model_has(axes):
    network = EVERY[axes].copy(padding="wrap", num_blocks=1, channels=12)
    model = VDM(schedules.linear(8.0, -6.0), network, likelihoods.discretised(9))
    x = np.random.RandomState(0).randint(0, 9, SHAPES[axes])
    params = model.init(jax.random.key(0), x)
    assert np.all(np.isfinite(jax.jit(model.vlb)(params, jax.random.key(1), x).total))
    samples = model.sample(params, jax.random.key(2), x.shape, num_steps=2)
    assert samples.shape == x.shape


def test_its_blocks_are_not_stacked():
    params = jax.eval_shape(SMALL.init, jax.random.key(0), *inputs(SHAPES[2]))
    assert jax.tree.structure(stacked.stack(params)) == jax.tree.structure(params)


def test_equal_networks_are_equal_and_hash_alike():
    one = DiT(patch=[2, 4], padding=["zero", "wrap"], fourier_exponents=[6], dtype=jnp.bfloat16)
    other = DiT(patch=(2, 4), padding=("zero", "wrap"), fourier_exponents=(6,), dtype="bfloat16")
    assert one == other != DiT()
    assert hash(one) == hash(other)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"axes": 4}, "axes must be 1, 2 or 3, .*: got 4"),
        ({"patch": 0}, "patch must be a whole number of at least 1: got 0"),
        ({"patch": 2.0}, "patch must be a whole number or several: got 2.0"),
        ({"patch": None}, "patch must be a whole number or several: got None"),
        ({"padding": None}, "padding must be zero or wrap, .*: got None"),
        ({"patch": (2, 2, 2)}, r"one for each of 2 axes: got \(2, 2, 2\)"),
        ({"channels": 10, "num_heads": 3}, "multiple of num_heads: got channels=10, num_heads=3"),
        ({"padding": "warp"}, "'warp'.*Did you mean 'wrap'"),
        ({"padding": ("zero",)}, "one of them for each of 2 axes"),
        ({"channels": 6, "num_heads": 2, "padding": "wrap"}, "even number of channels, at least 4"),
        ({"channels": 4, "num_heads": 2, "padding": "wrap"}, "even number of channels, at least 4"),
        ({"channels": 2, "num_heads": 1}, "channels must be at least 4: got 2"),
        ({"num_blocks": 0}, "num_blocks must be a whole number"),
        ({"optional_cond": True}, "optional_cond needs a condition"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_refuses_fields_that_do_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        DiT(**fields)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 8, 8), r"DiT\(axes=2\) expects z of shape \[b, h, w, c\]: got shape \(2, 8, 8\)"),
        ((2, 8, 8, 8, 1), r"shape \(2, 8, 8, 8, 1\)"),
        ((2, 8, 6, 1), r"multiples of 4: got size 6 on axis 2 .*; 4 or 8 would fit"),
        ((2, 3, 8, 1), r"got size 3 on axis 1 .*; 4 would fit"),
    ],
)
def test_refuses_sizes_that_do_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        SMALL.copy(patch=4).init(jax.random.key(0), jnp.zeros(shape), jnp.zeros(2))
