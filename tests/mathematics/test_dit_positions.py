"""Places of tokens, and attention with several heads, against NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm.networks import positions, transformer
from vdm.networks.transformer import Attention, TransformerBlock, multi_head


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def moved(module, *args):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
    rng = np.random.RandomState(1)
    return jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


@pytest.mark.parametrize("sizes", [(7,), (8,), (4, 6), (2, 3, 4)])
def test_logits_of_turned_channels_depend_on_the_difference_modulo_the_length(sizes):
    pairs = 6
    angles = positions.turns(sizes, ("wrap",) * len(sizes), pairs)
    places = list(itertools.product(*(range(n) for n in sizes)))
    rng = np.random.RandomState(0)
    q, k = rng.normal(size=(2, 1, 1, 1, 2 * pairs))
    tokens = len(places)
    at = lambda x: positions.turned(jnp.tile(x, (1, tokens, 1, 1)), angles)[0, :, 0]  # noqa: E731
    logits = np.asarray(at(q) @ at(k).T)
    found = {}
    for (i, p), (j, r) in itertools.product(enumerate(places), repeat=2):
        away = tuple((a - b) % n for a, b, n in zip(p, r, sizes, strict=True))
        found.setdefault(away, []).append(logits[i, j])
    assert len(found) == tokens
    for same in found.values():
        np.testing.assert_allclose(same, same[0], atol=1e-12)
    # And they do depend on it: no two differences have the same logit.
    assert np.min(np.diff(np.sort([same[0] for same in found.values()]))) > 1e-6


def test_axes_with_ends_are_not_turned_and_axes_that_close_have_no_places():
    sizes, padding = (4, 6), ("zero", "wrap")
    grid = positions.turns(sizes, padding, 5).reshape(4, 6, 5)
    np.testing.assert_array_equal(grid, np.broadcast_to(grid[:1], grid.shape))
    assert np.any(grid[:, 0] != grid[:, 1])
    grid = positions.absolute(sizes, padding, 8).reshape(4, 6, 8)
    np.testing.assert_array_equal(grid, np.broadcast_to(grid[:, :1], grid.shape))
    assert positions.turns(sizes, ("zero", "zero"), 5) is None
    assert not np.any(positions.absolute(sizes, ("wrap", "wrap"), 8))


def test_places_are_sines_and_cosines_of_each_axis_and_what_is_left_over_is_zero():
    found = positions.absolute((3, 5), ("zero", "zero"), 11).reshape(3, 5, 11)
    frequencies = np.array([1.0, 0.01])
    for i, j in itertools.product(range(3), range(5)):
        parts = [fn(p * frequencies) for p in (i, j) for fn in (np.sin, np.cos)]
        np.testing.assert_allclose(found[i, j], [*np.concatenate(parts), 0, 0, 0], atol=1e-14)


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def written_out(q, k, v):
    """Attention of [b, n, heads, c], one example, head and query after the other."""
    q, k, v = float64((q, k, v))
    mixed = np.zeros_like(v)
    for b, n, head in itertools.product(*map(range, q.shape[:3])):
        logits = np.array([q[b, n, head] @ key for key in k[b, :, head]])
        mixed[b, n, head] = softmax(logits / np.sqrt(q.shape[-1])) @ v[b, :, head]
    return mixed


@pytest.mark.parametrize("plain", [256, 5], ids=["at once", "in pieces"])
def test_attention_with_several_heads_is_softmax_written_out(plain, monkeypatch):
    monkeypatch.setattr(transformer, "PLAIN_TOKENS", plain)
    q, k, v = jnp.asarray(np.random.RandomState(0).normal(size=(3, 2, 6, 3, 4)))
    np.testing.assert_allclose(multi_head(q, k, v), written_out(q, k, v), rtol=1e-12)
    narrow = multi_head(*(jnp.asarray(part, jnp.bfloat16) for part in (q, k, v)))
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(float), written_out(q, k, v), atol=0.05)


def test_both_ways_have_the_same_derivatives_and_only_one_keeps_all_weights(monkeypatch):
    q, k, v = np.random.RandomState(0).normal(size=(3, 2, 6, 3, 4))
    found, kept = [], []
    for plain in (256, 5):
        monkeypatch.setattr(transformer, "PLAIN_TOKENS", plain)
        loss = lambda *a: jnp.sum(jnp.sin(multi_head(*a)))  # noqa: E731
        found.append(jax.grad(loss, argnums=(0, 1, 2))(q, k, v))
        residuals = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(multi_head, *a)[1], q, k, v))
        kept.append(max(leaf.size for leaf in residuals))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
    assert kept[0] == 2 * 3 * 6 * 6 > kept[1] == 2 * 6 * 3 * 4


@pytest.mark.float32
def test_in_pieces_the_heads_of_a_batch_are_never_in_memory_together():
    q = jax.ShapeDtypeStruct((2, 1024, 8, 4), jnp.float32)
    spent = jax.jit(multi_head).lower(q, q, q).compile().memory_analysis().temp_size_in_bytes
    one = 4 * 1024**2  # the logits of one head of one example
    assert spent < 4 * one < 2 * 8 * one


@pytest.mark.parametrize("padding", ["zero", "wrap"])
def test_a_layer_of_attention_against_numpy(padding):
    h = np.random.RandomState(2).normal(size=(2, 5, 12))
    layer = Attention(3, (5,), (padding,), "float64")
    params = moved(layer, jnp.asarray(h))
    p = float64(params["params"])
    q, k, v = np.split(h @ p["qkv"]["kernel"] + p["qkv"]["bias"], 3, axis=-1)
    q, k, v = (part.reshape(2, 5, 3, 4) for part in (q, k, v))
    if padding == "wrap":  # one turn over the ring, and two
        turn = np.exp(2j * np.pi * np.outer(np.arange(5), [1, 2]) / 5)[None, :, None]
        q, k = ((part[..., :2] + 1j * part[..., 2:]) * turn for part in (q, k))
        q, k = (np.concatenate([part.real, part.imag], axis=-1) for part in (q, k))
    mixed = written_out(q, k, v).reshape(2, 5, 12)
    expected = mixed @ p["proj_out"]["kernel"] + p["proj_out"]["bias"]
    np.testing.assert_allclose(
        layer.apply(params, jnp.asarray(h)), expected, rtol=1e-10, atol=1e-12
    )


def norm(h):
    std = np.sqrt(h.var(axis=-1, keepdims=True) + 1e-6)
    return (h - h.mean(axis=-1, keepdims=True)) / std


def gelu(h):
    return 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))


def test_a_block_against_numpy():
    rng = np.random.RandomState(3)
    h, level = rng.normal(size=(2, 4, 6)), rng.normal(size=(2, 5))
    block = TransformerBlock(2, (4,), ("zero",), 0.5, "float64")
    args = jnp.asarray(h), jnp.asarray(level), False
    params = moved(block, *args)
    p = float64(params["params"])
    given = level @ p["modulation"]["kernel"] + p["modulation"]["bias"]
    scale1, shift1, gate1, scale2, shift2, gate2 = np.split(given[:, None], 6, axis=-1)
    layer = Attention(2, (4,), ("zero",), "float64")
    attended = layer.apply({"params": p["attention"]}, jnp.asarray(norm(h) * (1 + scale1) + shift1))
    expected = h + gate1 * np.asarray(attended)
    r = norm(expected) * (1 + scale2) + shift2
    r = gelu(r @ p["dense1"]["kernel"] + p["dense1"]["bias"])
    expected = expected + gate2 * (r @ p["dense2"]["kernel"] + p["dense2"]["bias"])
    np.testing.assert_allclose(block.apply(params, *args), expected, rtol=1e-6, atol=1e-6)
