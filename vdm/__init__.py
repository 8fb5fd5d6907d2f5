"""Variational diffusion models, measured in bits."""

from vdm import (
    adaptive,
    diffusion,
    likelihoods,
    losses,
    networks,
    noise_levels,
    samplers,
    schedules,
    variance,
    weightings,
)
from vdm.losses import bits_per_dim
from vdm.model import VDM, VLB

__version__ = "0.1.0"
__all__ = [
    "VDM",
    "VLB",
    "adaptive",
    "bits_per_dim",
    "diffusion",
    "likelihoods",
    "losses",
    "networks",
    "noise_levels",
    "samplers",
    "schedules",
    "variance",
    "weightings",
]
