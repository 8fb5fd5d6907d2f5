"""Official parameter trees: what is read from their shapes, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import official
from vdm import VDM, interop, likelihoods, networks, schedules
from vdm.networks import unet
from vdm.networks.blocks import ResBlock

SMALL = {"channels": 8, "blocks": 2}
GROUPS = {"num_groups": 4}


def read(tree, **arguments):
    return interop.official(tree, **GROUPS, **arguments)


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("with_fourier", [True, False])
@pytest.mark.parametrize(
    ("kind", "schedule"),
    [
        ("fixed", schedules.linear(9.0, -4.0)),
        ("scalar", schedules.learned_linear(9.0, -4.0)),
        ("network", schedules.learned_unpinned(9.0, -4.0, width=5)),
    ],
)
def test_the_model_is_inferred(everywhere, with_fourier, kind, schedule):
    tree = official.parameters(
        channels=8,
        blocks=1 + with_fourier,
        everywhere=everywhere,
        with_fourier=with_fourier,
        data_channels=1 + everywhere,
        schedule=kind,
        schedule_width=5,
    )
    model, params = read(tree, log_snr_max=9.0, log_snr_min=-4.0, levels=17, dropout=0.25)
    expected = networks.UNet(
        channels=8,
        num_blocks=1 + with_fourier,
        fourier_exponents=(6, 7) if with_fourier else (),
        attention="everywhere" if everywhere else "middle",
        num_groups=4,
        dropout=0.25,
        cond_dim=1,
        log_snr_max=9.0,
        log_snr_min=-4.0,
    )
    assert model == VDM(schedule, expected, likelihoods.discretised(17))
    assert params["schedule"]["shape"] == {}
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == sum(leaf.size for leaf in official.leaves(tree).values())
    # Learned λ from its own leaves, whatever range the network was built for.
    t = np.linspace(0.0, 1.0, 7)
    if kind != "fixed":
        expected = -official.gamma(tree, t)[0]
        np.testing.assert_allclose(model.log_snr(params)(jnp.asarray(t)), expected, rtol=1e-12)


def test_the_fixed_schedule_has_the_range_of_the_arguments():
    tree = official.parameters(**SMALL, schedule="fixed")
    for ends in ({}, {"log_snr_max": 8.0, "log_snr_min": -7.0}):
        model, params = read(tree, **ends)
        high, low = model.log_snr(params)(jnp.asarray([0.0, 1.0]))
        expected = tuple(ends.values()) or (-official.GAMMA_MIN, -official.GAMMA_MAX)
        np.testing.assert_allclose((high, low), expected, rtol=1e-15)


def test_a_tree_without_the_conditioning_row():
    tree = official.parameters(**SMALL)
    kernel = tree["score_model"]["dense0"]["kernel"]
    tree["score_model"]["dense0"]["kernel"] = kernel[:-1]
    for keep in (True, False):
        model, params = read(tree, keep_conditioning=keep)
        assert model.network.cond_dim is None
        np.testing.assert_array_equal(params["network"]["dense0"]["kernel"], kernel[:-1])


@pytest.mark.float32
def test_leaves_keep_their_precision_float32_at_least():
    tree = official.mapped(lambda leaf: leaf.astype(np.float16), official.parameters(**SMALL))
    _, params = read(tree)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("channels", "width", "count"), [(128, None, 30_578_181), (256, 1024, 122_140_677)]
)
def test_the_published_models_have_as_many_parameters(channels, width, count):
    """CIFAR-10 without and with augmentation, 32 blocks a side (README of the fixture)."""
    schedule = schedules.learned_linear(13.3, -5.0)
    if width is not None:
        schedule = schedules.learned_unpinned(13.3, -5.0, width=width)
    network = networks.UNet(channels=channels, num_blocks=32, cond_dim=1)
    model = VDM(schedule, network, likelihoods.discretised())
    x, cond = jax.ShapeDtypeStruct((1, 4, 4, 3), np.uint8), jax.ShapeDtypeStruct((1, 1), float)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, cond)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def put(tree, name, leaf):
    *path, last = name.split("/")
    for key in path:
        tree = tree.setdefault(key, {})
    if leaf is None:
        del tree[last]
    else:
        tree[last] = leaf


LEAVES = [
    "gamma/b",
    "gamma/w",
    "score_model/GroupNorm_0/scale",
    "score_model/conv_in/bias",
    "score_model/conv_in/kernel",
    "score_model/conv_out/bias",
    "score_model/conv_out/kernel",
    "score_model/dense0/kernel",
    "score_model/down.block_1/conv1/bias",
    "score_model/mid.attn_1/q/kernel",
    "score_model/up.block_2/nin_shortcut/kernel",
]


@pytest.mark.parametrize("name", LEAVES)
def test_a_bad_leaf_is_named(name, unchecked):
    leaf = official.leaves(official.parameters(**SMALL))[name]
    for bad, message in (
        (None, f"missing leaf '{name}' of shape {leaf.shape}"),
        # Another number along the axis that the most is inferred from.
        (np.zeros((*leaf.shape[:-2], *(n + 1 for n in leaf.shape[-2:]))), f"leaf '{name}' has"),
        (leaf[None], f"got {leaf[None].shape}, expected {leaf.shape}"),
        (np.where(np.arange(leaf.size).reshape(leaf.shape) == 0, np.nan, leaf), "must be finite"),
        (leaf.astype(int), "must be an array of real numbers: got int64"),
    ):
        tree = official.parameters(**SMALL)
        put(tree, name, bad)
        with pytest.raises(ValueError) as error:
            read(tree)
        assert message in str(error.value) and name in str(error.value)


def test_the_schedule_network_s_leaves_are_named_too(unchecked):
    for name, shape in (("l2/bias", (12,)), ("l3/kernel", (11, 2)), ("l1/bias", ())):
        tree = official.parameters(**SMALL, schedule="network", schedule_width=11)
        put(tree, f"gamma/{name}", np.zeros(shape))
        with pytest.raises(ValueError, match=f"leaf 'gamma/{name}' has another shape"):
            read(tree)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("gamma/ww", "expected was 'gamma/w'"),
        ("score_model/down.block_0/conv3/kernel", "'score_model/down.block_0/conv"),
        ("other/kernel", "unexpected leaf 'other/kernel' of shape (2, 2)"),
    ],
)
def test_an_unexpected_leaf_is_named(name, nearest, unchecked):
    tree = official.parameters(**SMALL)
    put(tree, name, np.zeros((2, 2)))
    with pytest.raises(ValueError) as error:
        read(tree)
    assert f"unexpected leaf '{name}'" in str(error.value) and nearest in str(error.value)


def test_a_renamed_leaf_is_missing_and_its_new_name_is_told(unchecked):
    tree = official.parameters(**SMALL)
    tree["score_model"]["dense1x"] = tree["score_model"].pop("dense1")
    with pytest.raises(ValueError) as error:
        read(tree)
    assert "'score_model/dense1/bias'" in str(error.value)
    assert "there is 'score_model/dense1x/bias'" in str(error.value)


@pytest.mark.parametrize("tree", [{}, {"params": {"w": np.zeros(2)}}, {"gamma": np.zeros(2)}])
def test_a_tree_of_something_else(tree, unchecked):
    got = ", ".join(map(repr, tree)) or "nothing"
    with pytest.raises(ValueError, match=rf"\{{'gamma', 'score_model'\}}.*got a tree of {got}$"):
        read(tree)


def test_the_tree_itself_is_named_so(unchecked):
    with pytest.raises(ValueError, match="the tree itself must be a mapping: got ndarray"):
        read(np.zeros(3, int))


@pytest.mark.parametrize("name", ["down.block_99999999", "up.block_77", "down.block_" + "9" * 5000])
def test_a_stray_block_is_named_and_no_network_of_its_size_is_made(name, unchecked):
    tree = official.parameters(**SMALL)
    tree["score_model"][name] = {"conv1": {"bias": np.zeros(8)}}
    with pytest.raises(ValueError, match=f"unexpected leaf 'score_model/{name[:20]}"):
        read(tree)


def test_an_absent_block_is_missing(unchecked):
    tree = official.parameters(**SMALL)
    del tree["score_model"]["down.block_1"]
    with pytest.raises(ValueError, match=r"missing leaf 'score_model/down\.block_1/G"):
        read(tree)


@pytest.mark.float32
@pytest.mark.parametrize("name", ["score_model/conv_in/bias", "gamma/b"])
def test_a_leaf_that_overflows_is_refused(name, unchecked):
    tree = official.parameters(**SMALL)
    leaf = official.leaves(tree)[name]
    put(tree, name, np.full_like(leaf, 1e300))
    with pytest.raises(ValueError, match=f"'{name}' must be finite in float32"):
        read(tree)


@pytest.mark.parametrize("channels", ["data_channels", "channels"])
def test_no_channels(channels, unchecked):
    tree = official.parameters(**SMALL)
    for name, leaf in official.leaves(tree).items():
        if channels == "channels" and name.endswith(("conv1/bias", "conv2/bias", "conv_in/bias")):
            put(tree, name, leaf[:0])
        if channels == "data_channels" and "conv_out" in name:
            put(tree, name, leaf[..., :0])
    with pytest.raises(ValueError, match="conv_out must have at least one channel: got"):
        read(tree)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("scalar", {"w": 0.005}, "'gamma/w' gives λ almost no range"),
        ("scalar", {"w": 1e30}, "'gamma/w' takes λ outside ±80"),
        ("scalar", {"w": 120.0}, "'gamma/w' takes λ outside ±80"),
        ("scalar", {"b": -1e6}, "'gamma/b' takes λ outside ±80"),
        (
            "network",
            {"l1/kernel": 0.0, "l3/kernel": 0.0},
            "'gamma/l1/kernel' gives λ almost no range",
        ),
        ("network", {"l1/kernel": 200.0}, "'gamma/l1/kernel' takes λ outside ±80"),
        ("network", {"l1/bias": 200.0}, "'gamma/l1/bias' takes λ outside ±80"),
        ("network", {"l3/kernel": 1e308}, "'gamma/l3/kernel' takes λ outside ±80"),
    ],
)
def test_a_schedule_without_a_range_or_beyond_reason(kind, changes, message, unchecked):
    tree = official.parameters(**SMALL, schedule=kind)
    for name, value in changes.items():
        put(tree, f"gamma/{name}", np.full_like(official.leaves(tree["gamma"])[name], value))
    with pytest.raises(ValueError, match=message):
        read(tree)


def test_an_empty_mapping(unchecked):
    for name in ("gamma", "score_model/down.attn_0"):
        tree = official.parameters(**SMALL, schedule="fixed")
        put(tree, name, {})
        with pytest.raises(ValueError, match=f"'{name}' is an empty mapping"):
            read(tree)


def test_two_leaves_of_one_name(unchecked):
    tree = official.parameters(**SMALL)
    tree["score_model"]["conv_in/bias"] = np.zeros(8)
    with pytest.raises(ValueError, match="'score_model/conv_in/bias' occurs twice"):
        read(tree)


@pytest.mark.parametrize("leaf", [np.zeros(2), np.zeros(2, int)])
def test_a_foreign_key_is_one_short_line(leaf, unchecked):
    bad = "line\n\x1b[31m" + 300 * "a"
    for tree in ({bad: leaf}, official.parameters(**SMALL) | {bad: leaf}):
        with pytest.raises(ValueError) as error:
            read(tree)
        message = str(error.value)
        assert message.isprintable() and r"line\n\x1b" in message and len(message) < 300


@pytest.fixture
def blocks_made(monkeypatch):
    """The names of the residual blocks that are traced."""
    made = []

    class Counted(ResBlock):
        def __post_init__(self):
            super().__post_init__()
            if self.name:
                made.append(self.name)

    monkeypatch.setattr(unet, "ResBlock", Counted)
    return made


@pytest.mark.parametrize("everywhere", [True, False])
def test_the_shapes_are_those_of_the_whole_network(everywhere):
    for blocks in (1, 3):
        tree = official.parameters(channels=8, blocks=blocks, everywhere=everywhere)
        model, params = read(tree)
        x, cond = np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 1))
        whole = jax.eval_shape(model.init, jax.random.key(0), x, cond)["network"]
        assert jax.tree.map(jnp.shape, whole) == jax.tree.map(jnp.shape, params["network"])


def test_blocks_that_a_file_claims_are_not_traced(blocks_made, unchecked):
    tree = official.parameters(**SMALL)
    read(tree)
    few = len(blocks_made)
    bias = {"conv1": {"bias": np.zeros(8)}}
    tree["score_model"] |= {f"down.block_{i}": bias for i in range(2, 500)}
    blocks_made.clear()
    with pytest.raises(ValueError, match=r"missing leaf 'score_model/down\.block_10/G"):
        read(tree)
    assert len(blocks_made) == few > 0
