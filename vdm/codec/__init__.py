"""Lossless compression by a diffusion model: bits-back coding about as long as the bound."""

from vdm.codec.codec import Codec, Encoded, batch_sizes
from vdm.codec.stack import DamagedError

__all__ = ["Codec", "DamagedError", "Encoded", "batch_sizes"]
