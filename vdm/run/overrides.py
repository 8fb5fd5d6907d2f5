"""The options of a command that replace values of the config, and those that would do nothing."""

import argparse
import dataclasses
from typing import Any, TypeVar

from vdm.run.config import (
    CompressConfig,
    EvaluateConfig,
    FewStepsConfig,
    SampleConfig,
    fields,
    parse,
)
from vdm.run.config.rules import split_words
from vdm.run.errors import UserError

Settings = TypeVar("Settings", EvaluateConfig, SampleConfig, CompressConfig, FewStepsConfig)


def override(settings: Settings, options: argparse.Namespace) -> Settings:
    """Return the settings with the command's values in place of the config's.

    Raises UserError for a value that its field does not take.
    """
    given: dict[str, Any] = {
        field.name: fields.checked(field, value, f"--{field.flag}")
        for field, value in _given(type(settings), options)
    }
    return dataclasses.replace(settings, **given)


def check_used(settings: EvaluateConfig, options: argparse.Namespace, *, integers: bool) -> None:
    """Raise UserError for an option of the command that would do nothing."""
    given = [field for field, _ in _given(EvaluateConfig, options)]
    for field in given:
        if field.needs_bound not in (None, *split_words(settings.bound)):
            raise UserError(
                f"--{field.flag} needs --bound={field.needs_bound}: got --bound={settings.bound}"
            )
    names = [field.name for field in given]
    if "num_probes" in names and settings.divergence == "exact":
        raise UserError(
            "--num_probes is for --divergence=hutchinson: the exact divergence has no probes"
        )
    steps = parse.parse_num_steps(settings.num_steps)
    if "num_paths" in names and settings.num_paths and {*steps.plain, *steps.chains} == {None}:
        raise UserError(
            "--num_paths needs a finite T, which has paths: got "
            f"--num_steps={settings.num_steps}, expected such as --num_steps=100,inf"
        )
    if "tolerance" in names and settings.ode_steps:
        raise UserError("--tolerance is for adaptive steps: use it with --ode_steps=0")
    if not integers and (unused := [n for n in ("dequantisation", "num_samples") if n in names]):
        raise UserError(f"--{unused[0]} is for integer data: real numbers need no dequantisation")


def _given(block: type, options: argparse.Namespace) -> list[tuple[fields.Field, Any]]:
    """Return the fields of a block that the command sets, each with its value."""
    said = ((field, getattr(options, field.name, None)) for field in fields.of(block))
    return [(field, value) for field, value in said if value is not None]
