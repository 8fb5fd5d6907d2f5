"""Samplers: from noise to data along a grid of noise levels, with any denoiser.

A sampler is a frozen value that says how to take one step (`Sampler`); `sample` and
`trajectory` walk a whole grid with it, `inpaint` does where part of the data is known,
and `grids` holds the grids. Every denoiser is a plain function eps_fn(z, log_snr) → ε̂;
what changes a denoiser (clipping, guidance) is in `vdm.denoisers`.
"""

from vdm.samplers import grids
from vdm.samplers.base import Sampler
from vdm.samplers.dpmpp import DPMpp2M, dpmpp_2m
from vdm.samplers.edm import Heun, heun
from vdm.samplers.first_order import DDIM, Ancestral, ancestral, ddim
from vdm.samplers.inpainting import inpaint
from vdm.samplers.loop import SAMPLERS, sample, trajectory

__all__ = [
    "DDIM",
    "SAMPLERS",
    "Ancestral",
    "DPMpp2M",
    "Heun",
    "Sampler",
    "ancestral",
    "ddim",
    "dpmpp_2m",
    "grids",
    "heun",
    "inpaint",
    "sample",
    "trajectory",
]
