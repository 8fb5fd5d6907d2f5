"""The networks: their start, their parameters, their parts against plain numpy, their refusals."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from vdm.condition import Conditions
from vdm.networks import MLP, UNet, attention
from vdm.networks.attention import attend
from vdm.networks.blocks import AttentionBlock, ResBlock
from vdm.networks.condition import Kinds
from vdm.networks.embeddings import embed, fourier_features, sinusoidal

SMALL = {"channels": 8, "num_blocks": 1, "num_groups": 4, "dropout": 0.5}
UNET = UNet(**SMALL)
MLP_ = MLP(width=8, num_blocks=1, dropout=0.5)
SHAPE = (3, 4, 4, 2)


def inputs(shape):
    z = np.random.RandomState(0).normal(size=shape)
    return jnp.asarray(z), jnp.linspace(-4.0, 9.0, shape[0])


def moved(network, *args, scale=0.3, **options):
    """Parameters that are all away from zero, so that nothing hides behind a zero start."""
    init = functools.partial(network.init, **options)
    fresh = jax.eval_shape(init, jax.random.key(0), *args)
    rng = np.random.RandomState(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), fresh
    )


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def apply(network, params, z, log_snr, cond=None, seed=0, *, train=False):
    rngs = {"dropout": jax.random.key(seed)}
    return network.apply(params, z, log_snr, cond, train=train, rngs=rngs)


def shapes(network, *args):
    return jax.eval_shape(network.init, jax.random.key(0), *args)["params"]


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (UNet(**SMALL), (1, 5, 7, 3)),
        (UNet(**SMALL, attention="none"), (2, 1, 1, 1)),
        (UNet(**SMALL, fourier_exponents=()), (49, 3, 2, 4)),
        (UNet(**SMALL, fourier_exponents=(0, 3.1, -1)), (2, 3, 2, 1)),
        (MLP(width=8), (1, 2)),
        (MLP(width=8), (49, 3, 5)),
        (MLP(width=8), (3,)),
    ],
)
def test_the_output_has_the_shape_of_any_input(network, shape):
    z, log_snr = inputs(shape)
    for residual in (True, False):
        start = network.copy(residual=residual).init_with_output
        output, _ = jax.eval_shape(start, jax.random.key(0), z, log_snr)
        assert (output.shape, output.dtype) == (z.shape, z.dtype)


@pytest.mark.parametrize(
    ("network", "zeros"),
    [
        (UNet(**SMALL, attention="everywhere"), {"conv2", "cond_proj", "proj_out", "conv_out"}),
        (MLP_, {"dense2", "cond_proj", "dense_out"}),
    ],
)
def test_a_fresh_network_returns_z_with_residual_and_zero_without(network, zeros):
    z, log_snr = inputs(SHAPE)
    params = jax.jit(network.init)(jax.random.key(0), z, log_snr)
    kernels = [
        (path[-2].key, leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
        if path[-1].key == "kernel"
    ]
    assert {name for name, kernel in kernels if not np.any(kernel)} == zeros
    assert {name for name, kernel in kernels if np.any(kernel)}.isdisjoint(zeros)
    np.testing.assert_array_equal(apply(network, params, z, log_snr), z)
    plain = network.copy(residual=False)
    np.testing.assert_array_equal(apply(plain, params, z, log_snr), jnp.zeros(SHAPE))


@pytest.mark.parametrize("network", [UNET, MLP_])
def test_each_example_depends_on_itself_and_on_its_own_noise_level_alone(network):
    z, log_snr = inputs(SHAPE)
    params = moved(network, z, log_snr)
    output = apply(network, params, z, log_snr)
    assert output.shape == SHAPE
    for other in (
        apply(network, params, z.at[0].add(0.5), log_snr),
        apply(network, params, z, log_snr.at[0].add(0.5)),
    ):
        changed = np.any(np.asarray(output != other), axis=(1, 2, 3))
        np.testing.assert_array_equal(changed, [True, False, False])


@pytest.mark.parametrize("network", [UNET, MLP_])
def test_computes_in_the_asked_dtype_with_float32_parameters(network):
    z, log_snr = inputs(SHAPE)
    params = moved(network, z, log_snr, scale=0.1)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    exact = apply(network.copy(dtype="float64"), params, z, log_snr)
    spread = np.std(exact - z)
    # 8 bits of precision, and 24: the result differs from float64's, but not by much.
    for dtype, least, most in (("bfloat16", 1e-3, 0.2), ("float32", 1e-8, 1e-5)):
        output = apply(network.copy(dtype=dtype), params, z, log_snr)
        assert output.dtype == z.dtype
        assert least < np.max(np.abs(output - exact)) / spread < most


@pytest.mark.float32
def test_float32_inputs_give_float32():
    z, log_snr = inputs(SHAPE)
    assert z.dtype == jnp.float32
    for dtype in ("float32", "bfloat16"):
        network = MLP_.copy(dtype=dtype)
        assert apply(network, moved(network, z, log_snr), z, log_snr).dtype == jnp.float32


def test_the_defaults_are_the_cifar10_network_of_the_paper():
    c, e = 128, 512

    def dense(a, b):
        return a * b + b

    def block(a):  # two norms, two convolutions, the level's projection, the shortcut
        return 2 * a + 2 * c + dense(9 * a, c) + dense(9 * c, c) + e * c + (a != c) * dense(a, c)

    attention = 2 * c + 4 * dense(c, c)
    embedding = dense(c + 1, e) + dense(e, e)  # one scalar condition beside the sinusoid
    ends = dense(9 * 15, c) + 2 * c + dense(9 * c, 3)
    by_hand = embedding + ends + 34 * block(c) + attention + 33 * block(2 * c)
    assert by_hand == 30_578_181 - 2  # as published, but for the schedule's two end points
    args = jnp.zeros((2, 32, 32, 3)), jnp.zeros((2,)), jnp.zeros((2, 1))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(UNet(cond_dim=1), *args))) == by_hand


def test_sinusoid_against_a_direct_formula():
    t = jnp.asarray([0.0, 0.25, 1.0, -0.1])
    frequencies = np.array([1.0, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4])
    angles = 1000 * np.asarray(t, np.float64)[:, None] * frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(sinusoidal(t, 8), expected, atol=1e-3)
    padded = sinusoidal(t, 9)
    np.testing.assert_allclose(padded[:, :8], expected, atol=1e-3)
    np.testing.assert_array_equal(padded[:, 8], 0.0)


def test_the_noise_level_is_normalised_on_the_given_range():
    class Embedded(nn.Module):
        log_snr_max: float

        @nn.compact
        def __call__(self, log_snr):
            return embed(
                log_snr,
                Conditions(),
                Kinds(),
                features=6,
                hidden=4,
                log_snr_max=self.log_snr_max,
                log_snr_min=-6.0,
                dtype="float32",
            )

    log_snr = jnp.asarray([8.0, 1.0, -6.0])
    module = Embedded(8.0)
    params = moved(module, log_snr)["params"]
    level = sinusoidal(jnp.asarray([0.0, 0.5, 1.0]), 6)
    for layer in (params["dense0"], params["dense1"]):
        level = level @ layer["kernel"] + layer["bias"][None]
        level = level / (1 + jnp.exp(-level))
    np.testing.assert_allclose(module.apply({"params": params}, log_snr), level, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 2e-6), ("float64", 1e-11)])
def test_fourier_features_have_the_official_channel_order(dtype, atol):
    z = jax.random.normal(jax.random.key(3), (2, 3, 1, 3), dtype)
    per_channel = np.repeat(np.asarray(z, np.float64), 2, axis=-1)  # c0, c0, c1, c1, c2, c2
    angles = 2 * np.pi * per_channel * np.tile([2.0**6, 2.0**7], 3)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    features = fourier_features(z, (6, 7))
    assert features.shape == (2, 3, 1, 12)
    np.testing.assert_allclose(features, expected, atol=atol)


def test_fourier_features_keep_their_derivative():
    z = jnp.asarray([[0.3, -1.7]])
    _, slope = jax.jvp(lambda z: fourier_features(z, (3,)), (z,), (jnp.ones_like(z),))
    angles = 2 * np.pi * 8 * np.asarray(z, np.float64)
    expected = 16 * np.pi * np.concatenate([np.cos(angles), -np.sin(angles)], axis=1)
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-4)


def group_norm(h, layer, groups):
    b, height, width, c = h.shape
    grouped = h.reshape(b, height * width, groups, c // groups)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    std = np.sqrt(grouped.var(axis=(1, 3), keepdims=True) + 1e-6)
    return ((grouped - mean) / std).reshape(h.shape) * layer["scale"] + layer["bias"]


def swish(h):
    return h / (1 + np.exp(-h))


def conv3(h, layer):
    _, height, width, _ = h.shape
    padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = itertools.product(range(3), range(3))
    return layer["bias"] + sum(
        padded[:, i : i + height, j : j + width] @ layer["kernel"][i, j] for i, j in taps
    )


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def test_residual_block_against_numpy():
    h = jax.random.normal(jax.random.key(0), (2, 3, 5, 12))
    level = jax.random.normal(jax.random.key(1), (2, 7))
    block = ResBlock(8, ("zero", "zero"), num_groups=4, dropout=0.5, dtype="float32")
    params = moved(block, h, level, train=False)
    p = float64(params["params"])
    x, e = float64((h, level))
    r = conv3(swish(group_norm(x, p["norm1"], 4)), p["conv1"])
    r = r + (e @ p["cond_proj"]["kernel"])[:, None, None, :]
    r = conv3(swish(group_norm(r, p["norm2"], 4)), p["conv2"])
    expected = x @ p["nin_shortcut"]["kernel"] + p["nin_shortcut"]["bias"] + r
    np.testing.assert_allclose(
        block.apply(params, h, level, train=False), expected, rtol=1e-4, atol=1e-4
    )


def test_attention_against_softmax_written_out():
    h = jax.random.normal(jax.random.key(0), (2, 3, 4, 8))
    block = AttentionBlock(num_groups=2, dtype="float32")
    params = moved(block, h)
    p, x = float64((params["params"], h))
    pixels = group_norm(x, p["norm"], 2).reshape(2, 12, 8)
    q, k, v = (pixels @ p[name]["kernel"] + p[name]["bias"] for name in ("q", "k", "v"))
    weights = np.exp(np.einsum("bic,bjc->bij", q, k) / np.sqrt(8))
    mixed = np.einsum("bij,bjc->bic", weights / weights.sum(axis=2, keepdims=True), v)
    expected = x + (mixed @ p["proj_out"]["kernel"] + p["proj_out"]["bias"]).reshape(h.shape)
    np.testing.assert_allclose(block.apply(params, h), expected, rtol=1e-4, atol=1e-4)


def over_devices(q, k, v):
    with jax.sharding.use_abstract_mesh(AbstractMesh((2,), ("data",))):
        return attend(q, k, v)


def on_an_accelerator(q, k, v, size=5):
    parts = (part.reshape(3, 10, 4) for part in (q, k, v))
    return attention._by_queries(*parts, size).reshape(q.shape)


def in_one_piece(q, k, v):
    return on_an_accelerator(q, k, v, size=10)


def in_uneven_pieces(q, k, v):
    return on_an_accelerator(q, k, v, size=4)


def of_long_examples(q, k, v):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "MAX_LOGITS_OF_AN_EXAMPLE", 30)  # so three queries a piece
        return attend(q, k, v)


@pytest.mark.parametrize(
    "attend",
    [
        attend,
        over_devices,
        on_an_accelerator,
        in_one_piece,
        in_uneven_pieces,
        of_long_examples,
    ],
)
def test_attention_in_pieces_is_attention_and_so_are_its_derivatives(attend):
    q, k, v, dq = jax.random.normal(jax.random.key(0), (4, 3, 2, 5, 4))

    def plain(q, k, v):
        q, k, v = (part.reshape(3, 10, 4) for part in (q, k, v))
        weights = jax.nn.softmax(q @ k.swapaxes(1, 2) / 2.0, axis=-1)
        return (weights @ v).reshape(3, 2, 5, 4)

    np.testing.assert_allclose(attend(q, k, v), plain(q, k, v), rtol=1e-12)
    forward, expected = (
        jax.jvp(lambda q, fn=fn: fn(q, k, q + v), (q,), (dq,))[1] for fn in (attend, plain)
    )
    np.testing.assert_allclose(forward, expected, rtol=1e-10, atol=1e-12)
    back, expected = (
        jax.grad(lambda *a, fn=fn: jnp.sum(jnp.sin(fn(*a))), argnums=(0, 1, 2))(q, k, v)
        for fn in (attend, plain)
    )
    for one, other in zip(back, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("positions", "size", "pieces"),
    [(32 * 32, 1024, 1), (64 * 64, 256, 16), (48 * 7, 336, 1), (1031, 516, 2), (2**21, 1, 2**21)],
)
def test_pieces_of_attention_are_few_and_even_with_a_bounded_number_of_logits(
    positions, size, pieces
):
    assert attention._queries(positions) == size
    assert (pieces - 1) * size < positions <= pieces * size
    assert size * positions <= max(positions, attention.MAX_LOGITS)


def test_the_platform_compiled_for_decides_how_attention_is_computed():
    shapes = [jax.ShapeDtypeStruct((2, 64, 64, 4), jnp.float32)] * 3
    texts = {
        platform: jax.jit(attend).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    # A CPU takes an example at a time; the others 256 queries of all of them.
    assert "tensor<1x4096x4096xf32>" in texts["cpu"]
    for platform in ("tpu", "cuda"):
        assert "tensor<2x256x4096xf32>" in texts[platform]
        assert "x4096x4096xf32>" not in texts[platform]


def test_attention_commutes_with_any_order_of_the_pixels():
    h = jax.random.normal(jax.random.key(0), (2, 3, 4, 8))
    block = AttentionBlock(num_groups=2, dtype="float32")
    params = moved(block, h)
    order = np.random.RandomState(0).permutation(12)

    def shuffle(a):
        return a.reshape(2, 12, 8)[:, order].reshape(a.shape)

    np.testing.assert_allclose(
        block.apply(params, shuffle(h)), shuffle(block.apply(params, h)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("attention", "layers"), [("none", 0), ("middle", 1), ("everywhere", 4)])
def test_attention_stands_where_it_is_asked_for(attention, layers):
    network = UNet(**SMALL, attention=attention)
    z, log_snr = inputs((1, 4, 4, 1))
    names = {name for name in shapes(network, z, log_snr) if "attn" in name}
    assert len(names) == layers
    assert "mid_attn_1" in names or attention == "none"


CLASSES = jnp.asarray([0, 1, 2])
VECTORS = jnp.asarray([[0.5, -1.0], [0.0, 2.0], [1.0, 1.0]])


@pytest.mark.parametrize("network", [UNET, MLP_])
@pytest.mark.parametrize(
    ("fields", "cond"), [({"num_classes": 3}, CLASSES), ({"cond_dim": 2}, VECTORS)]
)
def test_each_example_is_given_its_own_condition(network, fields, cond):
    network = network.copy(**fields)
    z, log_snr = inputs(SHAPE)
    params = moved(network, z, log_snr, cond)
    output = apply(network, params, z, log_snr, cond)
    other = apply(network, params, z, log_snr, cond.at[0].set(cond[2]))
    changed = np.any(np.asarray(output != other), axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, [True, False, False])


@pytest.mark.parametrize("network", [UNET, MLP_])
@pytest.mark.parametrize(
    ("fields", "cond", "error", "message"),
    [
        ({}, CLASSES, ValueError, r"unconditional .* expected cond=None: got .*\(3,\)"),
        ({"num_classes": 3}, None, ValueError, "integers in 0..2 .*got cond=None"),
        ({"num_classes": 3}, VECTORS[:, 0], TypeError, "integers in 0..2 .*got float"),
        ({"num_classes": 3}, CLASSES[:2], ValueError, r"shape \(3,\): got shape \(2,\)"),
        ({"cond_dim": 2}, None, ValueError, r"floats of shape \(3, 2\): got cond=None"),
        ({"cond_dim": 2}, CLASSES, TypeError, r"floats of shape \(3, 2\): got int"),
        ({"cond_dim": 2}, VECTORS[:, :1], ValueError, r"\(3, 2\): got shape \(3, 1\)"),
    ],
)
def test_refuses_a_condition_it_was_not_built_for(network, fields, cond, error, message):
    z, log_snr = inputs(SHAPE)
    with pytest.raises(error, match=message):
        network.copy(**fields).init(jax.random.key(0), z, log_snr, cond)


@pytest.mark.parametrize("network", [UNET, MLP_])
def test_drops_out_only_in_training(network):
    z, log_snr = inputs(SHAPE)
    params = moved(network, z, log_snr)

    def run(seed, train=False):
        return apply(network, params, z, log_snr, seed=seed, train=train)

    np.testing.assert_array_equal(run(0), run(1))
    np.testing.assert_array_equal(run(0, train=True), run(0, train=True))
    assert np.any(run(0, train=True) != run(1, train=True))


@pytest.mark.parametrize("network", [UNET, MLP_])
def test_remat_changes_no_number_and_works_twice(network):
    again = network.clone(remat=True)
    z, log_snr = inputs(SHAPE)
    params = moved(network, z, log_snr, train=False)

    def total(network, params):
        options = {"train": True, "rngs": {"dropout": jax.random.key(3)}}
        return jnp.sum(jnp.sin(network.apply(params, z, log_snr, None, **options)))

    results, work = [], []
    for one in (network, again):
        gradient = jax.jit(jax.value_and_grad(functools.partial(total, one)))
        results.append(gradient(params))
        work.append(gradient.lower(params).cost_analysis()["flops"])
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(results[0][1]))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        # The bias of an attention's keys changes nothing: its gradient is rounding alone.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * largest)
    assert work[1] > 1.1 * work[0]  # every block once more


def test_equal_networks_are_equal_and_hash_alike():
    pairs = [
        (UNet(fourier_exponents=[6, 7]), UNet(fourier_exponents=(6, 7))),
        (UNet(dtype=jnp.bfloat16), UNet(dtype="bfloat16")),
        (MLP(dtype=jnp.dtype("float32")), MLP()),
    ]
    for one, other in pairs:
        assert one == other
        assert hash(one) == hash(other)
    assert UNet() != UNet(num_blocks=31)
    assert MLP() != MLP(residual=False)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UNet(channels=48), "multiple of num_groups: got channels=48, num_groups=32"),
        (lambda: UNet(num_blocks=0), "num_blocks must be a whole number of at least 1: got 0"),
        (lambda: UNet(attention="midle"), "attention 'midle'.*Did you mean 'middle'"),
        (lambda: UNet(dtype="float23"), "dtype 'float23'.*Did you mean 'float32'"),
        (lambda: UNet(dtype=jnp.int32), "dtype 'int32'"),
        (lambda: MLP(cond_channels=0), "cond_channels must be a whole number of at least 1: got 0"),
        (lambda: MLP(cond_dim=0), "cond_dim must be a whole number of at least 1: got 0"),
        (lambda: MLP(dropout=1.0), r"dropout must be in \[0, 1\): got 1.0"),
        (lambda: MLP(log_snr_max=-5.0), "above its log_snr_min.*got log_snr_max=-5.0"),
        (lambda: MLP(log_snr_max=float("inf")), "both finite: got log_snr_max=inf"),
        (lambda: sinusoidal(jnp.zeros(2), 3), "at least 4 features: got 3"),
    ],
)
def test_refuses_fields_that_do_not_fit(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_unet_refuses_what_is_not_a_batch_of_images():
    with pytest.raises(ValueError, match=r"\(axes=2\) .*\[b, h, w, c\]: got shape \(3, 8, 8\)"):
        UNet(**SMALL).init(jax.random.key(0), jnp.zeros((3, 8, 8)), jnp.zeros(3))


@pytest.mark.parametrize("network", [UNET, MLP_])
@pytest.mark.parametrize("shape", [(), (2,), (3, 1)])
def test_refuses_anything_but_one_noise_level_per_example(unchecked, network, shape):
    z, _ = inputs(SHAPE)
    with pytest.raises(ValueError, match=r"log_snr of shape \(3,\): got shape"):
        network.init(jax.random.key(0), z, jnp.zeros(shape))
