"""What a command says in place of the config, and which of its options would do nothing."""

import argparse
import dataclasses
import math
from typing import Any

from vdm.run.errors import UserError

# What each option of `vdm evaluate` is for, where that is not every bound.
OPTIONS = {
    "vlb": ("num_steps", "law", "levels_per_example", "clip_denoised"),
    "ode": (
        "dequantisation",
        "num_samples",
        "divergence",
        "num_probes",
        "ode_steps",
        "tolerance",
    ),
}


def override(settings: Any, options: argparse.Namespace) -> Any:
    """Return the settings with what the command says in place of the config."""
    given = _given(settings, options)
    for name, value in given.items():
        word = "steps" if name == "num_steps" else name
        lowest = 0 if name in ("ode_steps", "resolution") else 1
        if type(value) is int and name != "seed" and value < lowest:
            raise UserError(f"--{word} must be at least {lowest}: got {value}")
        if type(value) is float and not math.isfinite(value):
            raise UserError(f"--{word} must be finite: got {value}")
        if name == "tolerance" and not value > 0:
            raise UserError(f"--tolerance must be positive: got {value}")
    return dataclasses.replace(settings, **given)


def _given(settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Return what the command says of the settings."""
    names = [field.name for field in dataclasses.fields(settings)]
    values = {name: getattr(options, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def check_used(settings: Any, options: argparse.Namespace, *, integers: bool) -> None:
    """Raise UserError for an option of the command that would do nothing."""
    given = _given(settings, options)
    for bound, names in OPTIONS.items():
        unused = [name for name in names if name in given]
        if unused and bound not in settings.bound.split(","):
            raise UserError(f"--{unused[0]} needs --bound={bound}: got --bound={settings.bound}")
    if "num_probes" in given and settings.divergence == "exact":
        raise UserError("--num_probes is for --divergence=hutchinson: the exact one has no probes")
    if "tolerance" in given and settings.ode_steps:
        raise UserError("--tolerance is for steps that adapt: expected --ode_steps=0 beside it")
    if not integers and (unused := [n for n in ("dequantisation", "num_samples") if n in given]):
        raise UserError(
            f"--{unused[0]} is for integer data: there is nothing to draw for real numbers"
        )
