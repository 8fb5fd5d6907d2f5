"""The products of a U-Net's forward pass, as XLA counts them, against a formula written out."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

from vdm.condition import Conditions
from vdm.networks import UNet

PRODUCTS = ("conv_general_dilated", "dot_general")


def formula(network, shape):
    """FLOPs of convolutions, dense layers and attention; a multiplication and an addition are two.

    A convolution has a product for each pair of an output and an input in its reach: along an axis
    of n, 3 n of them where it wraps, and one less at each end that an output reaches beyond.
    """
    b, *size, c = shape
    width = network.channels
    paddings = network.padding
    if isinstance(paddings, str):
        paddings = (paddings,) * network.axes
    everywhere = network.attention == "everywhere"

    def conv(size, given, made, stride=1):
        pairs = [
            3 * (n // stride) - (0 if word == "wrap" else 2 // stride)
            for n, word in zip(size, paddings, strict=True)
        ]
        return 2 * b * math.prod(pairs) * given * made

    def dense(positions, given, made):
        return 2 * b * positions * given * made

    def block(size, given):
        shortcut = dense(math.prod(size), given, width) if given != width else 0
        of_level = dense(1, 4 * width, width)
        return conv(size, given, width) + conv(size, width, width) + of_level + shortcut

    def attention(size):
        n = math.prod(size)
        return 4 * dense(n, width, width) + 2 * dense(n, n, width)

    vector = width + (network.cond_dim or 0) + (width if network.num_classes else 0)
    inputs = c * (1 + 2 * len(network.fourier_exponents)) + (network.cond_channels or 0)
    total = dense(1, vector, 4 * width) + dense(1, 4 * width, 4 * width)
    total += conv(size, inputs, width) + conv(size, width, c)
    for i, count in enumerate((network.num_blocks, *network.levels)):
        if i:
            total += conv(size, width, width, stride=2) + conv(size, width, width)  # down and up
            size = [n // 2 for n in size]
        total += count * block(size, width) + (count + 1) * block(size, 2 * width)
        total += everywhere * (2 * count + 1) * attention(size)
    total += 2 * block(size, width)
    return total + (network.attention != "none") * attention(size)


def of_program(jaxpr):
    """XLA's count of each product of a program, as often as it is run on an accelerator."""
    total = 0
    for one in jaxpr.eqns:
        if one.primitive.name in PRODUCTS:
            total += alone(one.primitive, one.invars, one.params)
        elif one.primitive.name == "cond":  # of platforms, the last branch for all but CPUs
            total += of_program(one.params["branches"][-1].jaxpr)
        else:
            rounds = one.params["length"] if one.primitive.name == "scan" else 1
            inside = [
                getattr(value, "jaxpr", value)
                for value in one.params.values()
                if isinstance(value, core.ClosedJaxpr | core.Jaxpr)
            ]
            total += rounds * sum(map(of_program, inside))
    return total


def alone(primitive, operands, params):
    shapes = [jax.ShapeDtypeStruct(of.aval.shape, of.aval.dtype) for of in operands]
    return counted(primitive, tuple(shapes), tuple(params.items()))


@functools.cache
def counted(primitive, shapes, params):
    program = jax.jit(lambda *operands: primitive.bind(*operands, **dict(params)))
    return program.lower(*shapes).cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        ((12,), {"attention": "none"}),
        ((12,), {"padding": "wrap", "attention": "everywhere", "levels": (2, 1)}),
        ((6, 10), {"attention": "middle", "num_classes": 3, "cond_dim": 5}),
        ((8, 12), {"padding": ("wrap", "zero"), "attention": "everywhere", "levels": (1, 2)}),
        ((5, 6, 4), {"padding": "wrap", "attention": "middle", "cond_channels": 2}),
        ((4, 8, 6), {"attention": "everywhere", "levels": (1,)}),
        ((4, 8, 8), {"padding": ("zero", "wrap", "wrap"), "attention": "none", "levels": (1, 1)}),
    ],
)
def test_xla_counts_the_products_of_the_formula(size, fields):
    network = UNet(8, 2, num_groups=4, axes=len(size), **fields)
    shape = (3, *size, 2)
    z, log_snr = jnp.zeros(shape), jnp.zeros(3)
    cond = Conditions(
        jnp.zeros(3, int) if network.num_classes else None,
        jnp.zeros((3, network.cond_dim)) if network.cond_dim else None,
        jnp.zeros((*shape[:-1], network.cond_channels)) if network.cond_channels else None,
    )
    params = jax.eval_shape(network.init, jax.random.key(0), z, log_snr, cond)
    program = jax.make_jaxpr(network.apply)(params, z, log_snr, cond)
    # Both are sums of whole numbers.
    assert of_program(program.jaxpr) == formula(network, shape)


@pytest.mark.parametrize("axes", [1, 2])
def test_nearly_all_of_xlas_count_are_products(axes):
    network = UNet(64, 1, axes=axes, attention="none", levels=(1,))
    shape = (1, *[16] * axes, 1)
    z, log_snr = jnp.zeros(shape, "float32"), jnp.zeros(1, "float32")
    params = jax.eval_shape(network.init, jax.random.key(0), z, log_snr)
    counted = jax.jit(network.apply).lower(params, z, log_snr).cost_analysis()["flops"]
    assert 1 < counted / formula(network, shape) < 1.05
