"""The configs of experiments as modules, for tests of the data that they make."""

import importlib.util
import pathlib

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"


def module(name):
    """Return an experiment's module, imported anew."""
    spec = importlib.util.spec_from_file_location(f"of_test_{name}", EXPERIMENTS / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
