"""Variational diffusion models, measured in bits."""

from vdm.losses import bits_per_dim
from vdm.model import VDM, VLB

__all__ = ["VDM", "VLB", "bits_per_dim"]
__version__ = "0.1.0"
