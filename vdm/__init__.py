"""Variational diffusion models, measured in bits."""

from vdm import diffusion, likelihoods, losses, networks, noise_levels, samplers, schedules
from vdm.losses import bits_per_dim
from vdm.model import VDM, VLB

__version__ = "0.1.0"
__all__ = [
    "VDM",
    "VLB",
    "bits_per_dim",
    "diffusion",
    "likelihoods",
    "losses",
    "networks",
    "noise_levels",
    "samplers",
    "schedules",
]
