"""The digits with their class as condition: how many bits does the label save?

    vdm train    --config=experiments/digits_conditional.py --workdir=runs/digits_conditional
    vdm evaluate --workdir=runs/digits_conditional --split=test
    vdm sample   --workdir=runs/digits_conditional --num=100

Everything but the condition is that of experiments/digits.py, which has the unconditional
figure. A label is worth at most log2(10)/64 = 0.052 bits per dimension.

Hardware and time: as experiments/digits.py, or @@CONDTIME@@ in the form of `make demo`.
Expected in that form: @@COND@@ bits per dimension on the 297 test images, given
their classes, where the unconditional model takes @@DEMO@@.
"""

import importlib.util
import pathlib

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the config."""
    # Config files are loaded by path, so their neighbours are too.
    path = pathlib.Path(__file__).with_name("digits.py")
    spec = importlib.util.spec_from_file_location("digits", path)
    digits = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(digits)
    config = digits.get_config()
    config.model.network.num_classes = 10
    return config
