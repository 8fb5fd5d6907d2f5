"""The convolution of each number of axes and padding against SciPy's, however it is computed."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from vdm.networks import convolution
from vdm.networks.convolution import Conv, convolve

PADDINGS = [
    ("zero",),
    ("wrap",),
    *itertools.product(("zero", "wrap"), repeat=2),
    *itertools.product(("zero", "wrap"), repeat=3),
]
OF_VOLUMES = [("zero",) * 3, ("wrap", "zero", "wrap"), ("zero", "wrap", "wrap"), ("wrap",) * 3]
SIZES = (6, 4, 2)


def drawn(axes, channels=2, features=3):
    rng = np.random.RandomState(0)
    h = jnp.asarray(rng.normal(size=(2, *SIZES[:axes], channels)))
    return h, jnp.asarray(rng.normal(size=(*[3] * axes, channels, features)))


def by_scipy(h, kernel, padding):
    """SciPy's correlation of each pair of channels; axes that wrap are filled beforehand."""
    axes = len(padding)
    width = [(2, 2) if word == "wrap" else (0, 0) for word in padding]
    inside = tuple(
        slice(before, before + n) for (before, _), n in zip(width, h.shape[1:-1], strict=True)
    )
    out = np.zeros((*h.shape[:-1], kernel.shape[-1]))
    for b, c, f in itertools.product(*map(range, (h.shape[0], *kernel.shape[axes:]))):
        filled = np.pad(h[b, ..., c], width, mode="wrap")
        # A mode for all axes: the wrapped ones are filled far enough for it not to matter.
        one = ndimage.correlate(filled, kernel[..., c, f], mode="constant")
        if set(padding) == {"wrap"}:
            np.testing.assert_allclose(
                ndimage.correlate(h[b, ..., c], kernel[..., c, f], mode="wrap"), one[inside]
            )
        out[b, ..., f] += one[inside]
    return out


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", PADDINGS, ids="-".join)
def test_a_convolution_is_that_of_scipy(padding, stride):
    h, kernel = drawn(len(padding))
    expected = by_scipy(h, kernel, padding)[:, *[slice(None, None, stride)] * len(padding)]
    np.testing.assert_allclose(convolve(h, kernel, padding, stride), expected, atol=1e-12)


def test_an_axis_of_one_position_wraps_to_itself():
    h, kernel = drawn(1)
    expected = np.einsum("bxc,ocf->bxf", h[:, :1], kernel)
    np.testing.assert_allclose(convolve(h[:, :1], kernel, ("wrap",)), expected, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", OF_VOLUMES, ids="-".join)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_planes_on_a_cpu_give_the_value_and_gradient_of_one_convolution(dtype, padding, stride):
    h, kernel = (jnp.asarray(part, dtype) for part in drawn(3))

    def loss(compute, h, kernel):
        y = compute(h, kernel, padding, stride)
        weights = jnp.asarray(np.random.RandomState(1).normal(size=y.shape), dtype)
        return jnp.sum((y * weights).astype(float)), y

    results = [
        jax.jit(jax.value_and_grad(functools.partial(loss, of), argnums=(0, 1), has_aux=True))(
            h, kernel
        )
        for of in (convolution._by_planes, convolution._whole, convolve)
    ]
    (_, expected), gradients = results[1]
    for (_, y), found in results[0], results[2]:
        for one, other in zip((y, *found), (expected, *gradients), strict=True):
            assert one.dtype == other.dtype == dtype
            one, other = (np.asarray(part, np.float64) for part in (one, other))
            # A number is a sum of some tens of products: several roundings of the largest, which
            # bfloat16 keeps 8 bits of.
            rounding = float(jnp.finfo(dtype).eps)
            np.testing.assert_allclose(one, other, atol=8 * rounding * np.abs(other).max())


def test_the_platform_compiled_for_decides_how_volumes_are_convolved():
    h, kernel = (jax.ShapeDtypeStruct(part.shape, jnp.float32) for part in drawn(3))

    def gradient(h, kernel):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(convolve(*a, OF_VOLUMES[-1]))), (0, 1))(
            h, kernel
        )

    def convolutions(platform):
        lowered = jax.jit(gradient).trace(h, kernel).lower(lowering_platforms=(platform,))
        return lowered.as_text().count("stablehlo.convolution")

    # Once forwards and twice backwards: the convolution of h is not computed again.
    assert convolutions("cuda") == convolutions("tpu") == 3
    assert convolutions("cpu") == 9


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_the_parameters_are_those_of_flax_and_so_is_the_value(axes):
    h, _ = drawn(axes)
    key = jax.random.key(0)
    ours = Conv(3, ("zero",) * axes, "float64")
    theirs = nn.Conv(3, (3,) * axes, dtype="float64")
    params = ours.init(key, h)
    jax.tree.map(np.testing.assert_array_equal, params, theirs.init(key, h))
    params = jax.tree.map(lambda leaf: leaf + 0.5, params)
    np.testing.assert_allclose(ours.apply(params, h), theirs.apply(params, h), atol=1e-12)
