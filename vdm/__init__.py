"""Variational diffusion models, measured in bits."""

from vdm import (
    adaptive,
    codec,
    control_variate,
    ddpm,
    denoisers,
    dequantisation,
    diffusion,
    gaps,
    information,
    interop,
    likelihoods,
    losses,
    networks,
    noise_levels,
    ode,
    samplers,
    schedules,
    sde,
    variance,
    weightings,
)
from vdm.fitting import fit
from vdm.losses import VLB, bits_per_dim
from vdm.model import VDM

__version__ = "0.2.0.dev0"
__all__ = [
    "VDM",
    "VLB",
    "adaptive",
    "bits_per_dim",
    "codec",
    "control_variate",
    "ddpm",
    "denoisers",
    "dequantisation",
    "diffusion",
    "fit",
    "gaps",
    "information",
    "interop",
    "likelihoods",
    "losses",
    "networks",
    "noise_levels",
    "ode",
    "samplers",
    "schedules",
    "sde",
    "variance",
    "weightings",
]
