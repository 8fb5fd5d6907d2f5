"""Variational diffusion models, measured in bits.

Names are imported when they are first used: `vdm --help` needs none of them.
"""

import importlib
import importlib.util
import typing

if typing.TYPE_CHECKING:
    from vdm import (
        adaptive,
        codec,
        control_variate,
        ddpm,
        denoisers,
        dequantisation,
        diffusion,
        few_steps,
        gaps,
        inference,
        information,
        interop,
        likelihoods,
        losses,
        networks,
        noise_levels,
        ode,
        optimizers,
        samplers,
        schedules,
        sde,
        sets,
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
    "few_steps",
    "fit",
    "gaps",
    "inference",
    "information",
    "interop",
    "likelihoods",
    "losses",
    "networks",
    "noise_levels",
    "ode",
    "optimizers",
    "samplers",
    "schedules",
    "sde",
    "sets",
    "variance",
    "weightings",
]
# What is not a module of its own.
_FROM = {"VDM": "model", "VLB": "losses", "bits_per_dim": "losses", "fit": "fitting"}


if not typing.TYPE_CHECKING:  # a type checker would take any name for known

    def __getattr__(name: str) -> typing.Any:
        where = f"vdm.{_FROM.get(name, name)}"
        if name.startswith("_") or importlib.util.find_spec(where) is None:
            raise AttributeError(f"module 'vdm' has no attribute {name!r}")
        module = importlib.import_module(where)
        value = getattr(module, name) if name in _FROM else module
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
