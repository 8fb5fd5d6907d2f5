"""The machinery around the models: configs, data, training, evaluation, and the command line."""

import pathlib
import typing

if typing.TYPE_CHECKING:
    from vdm.run.trained import Trained


def load(workdir: str | pathlib.Path, params: str = "ema") -> "Trained":
    """Return the trained run of a workdir at its latest checkpoint, on all available devices.

    The data set need not be available. `params` is "ema" for the averaged parameters or "raw" for
    the last ones. Raises UserError if there is no run, or for another value of params.
    """
    # Imported late: config files import this package, and orbax takes seconds.
    from vdm.run import trained

    return trained.load(workdir, params)
