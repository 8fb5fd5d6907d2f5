"""The command line in outline: its commands, without their options and what these import."""

import argparse
from collections.abc import Mapping
from typing import Any

import vdm

COMMANDS: Mapping[str, str] = {
    "train": "train a model, or resume its training",
    "evaluate": "measure bits per dimension on a split",
    "score": "measure the bits of every example of a file",
    "infer": "take the posterior of the condition that an example comes from, on a grid",
    "fit-chain": "fit chains of few steps, for the bound, samples and compression",
    "sample": "draw samples",
    "report": "write an HTML page on one run, or compare several",
    "import": "turn a checkpoint of other code into a run",
    "export": "write a run as one file and as programs for JAX alone",
    "demo": "write the trained digits run that comes with the package",
    "compress": "compress arrays or images into one file, without loss",
    "decompress": "restore what was compressed",
}


def outline() -> tuple[argparse.ArgumentParser, Any]:
    """Return the parser without its commands, and the object whose add_parser takes them."""
    whole = argparse.ArgumentParser(
        prog="vdm",
        description="Variational diffusion models, measured in bits.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"vdm {vdm.__version__}")
    return whole, whole.add_subparsers(required=True, metavar="COMMAND")
