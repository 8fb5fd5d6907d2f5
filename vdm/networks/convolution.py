"""Convolutions over one to three axes, each of them padded with zeros or periodic."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from vdm.networks.fields import DTypeLike

WIDTH = 3  # of a kernel, along every axis


class Conv(nn.Module):
    """A convolution with a bias and a kernel of 3 along every axis (see `convolve`).

    Its parameters have the names, the shapes and the start of `flax.linen.Conv`: `kernel` of
    shape [3, …, 3, c, features] and `bias` of shape [features].
    """

    features: int
    padding: tuple[str, ...]
    dtype: DTypeLike
    stride: int = 1
    kernel_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, h: Float[Array, " b *d c"]) -> Float[Array, " b *e features"]:
        shape = (WIDTH,) * len(self.padding) + (h.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        h, kernel, bias = promote_dtype(h, kernel, bias, dtype=self.dtype)
        y = convolve(h, kernel, self.padding, self.stride)
        return y + jnp.expand_dims(bias, range(y.ndim - 1))


def convolve(
    h: Float[Array, " b *d c"],
    kernel: Float[Array, " *k c f"],
    padding: Sequence[str],
    stride: int = 1,
) -> Float[Array, " b *e f"]:
    """Return y[i] = Σ_o kernel[o] h[stride·i + o − 1], over the offsets o in 0..2 of every axis.

    Beyond its ends an axis goes on with zeros ("zero") or from its other end ("wrap"). Every size
    must be a multiple of `stride`, by which it is divided.
    """
    padding = tuple(padding)
    if len(padding) < 3:
        return _whole(h, kernel, padding, stride)

    # From z alone both compute again what they need backwards, so that neither has to keep what
    # only the other one needs.
    @jax.checkpoint
    def on_cpu(h: Array, kernel: Array) -> Array:
        return _by_planes(h, kernel, padding, stride)

    @jax.checkpoint
    def elsewhere(h: Array, kernel: Array) -> Array:
        return _whole(h, kernel, padding, stride)

    return jax.lax.platform_dependent(h, kernel, cpu=on_cpu, default=elsewhere)


def _whole(h: Array, kernel: Array, padding: tuple[str, ...], stride: int) -> Array:
    """Return the convolution as one of XLA's."""
    axes = len(padding)
    names = "DHW"[-axes:]
    wrapped = [(0, 0), *((1, 1) if word == "wrap" else (0, 0) for word in padding), (0, 0)]
    if "wrap" in padding:
        h = jnp.pad(h, wrapped, mode="wrap")
    return jax.lax.conv_general_dilated(
        h,
        kernel,
        (stride,) * axes,
        [(0, 0) if word == "wrap" else (1, 1) for word in padding],
        dimension_numbers=(f"N{names}C", f"{names}IO", f"N{names}C"),
    )


def _by_planes(h: Array, kernel: Array, padding: tuple[str, ...], stride: int) -> Array:
    """Return the convolution over three axes as a sum of convolutions of planes.

    y[i] = Σ_o (kernel[o] ∗ h[stride·i + o − 1]) over the offsets along the first axis. XLA's
    backend for CPUs takes 2.4 to 3.5 times as long for one convolution over three axes (value and
    gradient, 32³ with 8 channels and 16³ with 16, jax 0.10.2 on two cores).
    """
    batch, depth = h.shape[:2]
    first: tuple[tuple[int, int], ...] = ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0))
    h = jnp.pad(h, first, mode="wrap" if padding[0] == "wrap" else "constant")

    def at(offset: int) -> Array:
        planes = h[:, offset : offset + depth : stride]
        out = _whole(planes.reshape(-1, *h.shape[2:]), kernel[offset], padding[1:], stride)
        return out.reshape(batch, -1, *out.shape[1:])

    return at(0) + at(1) + at(2)
