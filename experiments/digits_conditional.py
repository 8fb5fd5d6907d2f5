"""The digits with their class as condition: how many bits does the label save?

    vdm train    --config=experiments/digits_conditional.py --workdir=runs/digits_conditional
    vdm evaluate --workdir=runs/digits_conditional --split=test
    vdm sample   --workdir=runs/digits_conditional --num=100

Everything but the condition is that of experiments/digits.py, which has the unconditional
figure. To exact models a label is worth at most log2(10)/64 = 0.052 bits per dimension;
a model in training gains more, for the label makes its task easier.

Hardware and time: two CPU cores, 1 to 3 min in the form of `make demo` (this form: not measured).
Expected in that form: 1.758 ± 0.014 bits per dimension on the 297 test images, given
their classes, where the unconditional model takes 1.864 ± 0.013.
"""

from ml_collections import ConfigDict

from vdm.run.config import neighbour


def get_config() -> ConfigDict:
    """Return the config."""
    config = neighbour(__file__, "digits.py")
    config.model.network.num_classes = 10
    return config
