"""Where scores stand among those of a split: the share of its examples with at least as many bits.

Among the test split the rank of an example that is like the data is uniform, and that of an unusual
one is small. The numbers of a split are what the latest evaluation has kept in the workdir.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from vdm.run.config import EvaluateConfig
from vdm.run.config.rules import split_words
from vdm.run.config.words import SPLITS, VALIDATION
from vdm.run.errors import UserError
from vdm.run.evaluation import files
from vdm.run.evaluation.record import Evaluation, OdeResult, Result, VlbResult
from vdm.run.run import Run
from vdm.run.scoring.scores import Scores, ode_draws


class Ranks(NamedTuple):
    """The ranks of scores among a split's examples, [n], and the bits of these, sorted [m].

    `levels` is the number of noise levels that each of those was measured with, None for the ODE.
    """

    split: str
    ranks: np.ndarray
    bits: np.ndarray
    levels: int | None


def of_splits(
    scores: Scores, run: Run, settings: EvaluateConfig, workdir: pathlib.Path
) -> tuple[list[Ranks], list[str]]:
    """Return the ranks among test and train, and a line for each split that has none.

    Only numbers of the same bound, parameters and step are compared with, and of the same solver or
    precision.
    """
    try:
        evaluation = files.read(workdir)
    except UserError as error:
        return [], [f"no ranks: {error}"]
    found, lines = [], []
    for split in reversed(SPLITS):
        result = _result(evaluation, split, run, settings)
        bits = None if result is None else files.of_examples(workdir, result)
        if bits is None:
            lines.append(f"no ranks among {split}: `{_command(split, run, settings, workdir)}`")
            continue
        levels = result.levels_per_example if isinstance(result, VlbResult) else None
        bits = np.sort(bits)
        found.append(Ranks(split, rank(scores.bpd, bits), bits, levels))
    return found, lines


def rank(bpd: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Return for every score the share of the sorted numbers [m] that are at least as large."""
    return 1.0 - np.searchsorted(of, bpd, side="left") / len(of)


def _result(
    evaluation: Evaluation | None, split: str, run: Run, settings: EvaluateConfig
) -> Result | None:
    """Return the split's result of the same bound, parameters and step, None if there is none."""
    # What tensorflow-datasets has of ImageNet is tested on its own split validation.
    own = split == "test" and not run.config.train.validation_examples
    names = (split, VALIDATION) if own else (split,)
    for result in () if evaluation is None else evaluation.results:
        origin = result.origin
        made_of = (origin.step, origin.params or "ema", origin.unconditional)
        asked = (run.step, run.kind, settings.unconditional)
        if origin.split in names and made_of == asked and _same_bound(result, run, settings):
            return result
    return None


def _same_bound(result: Result, run: Run, settings: EvaluateConfig) -> bool:
    if isinstance(result, OdeResult):
        draws = (result.num_samples, result.dequantisation)
        # Another solver has another error, which moves all of its numbers.
        solver = (result.ode_steps, result.tolerance)
        steps = settings.ode_steps
        asked = (steps, None) if steps else (None, settings.tolerance)
        return settings.bound == "ode" and draws == ode_draws(run, settings) and solver == asked
    plain = result.continuous and not result.clip_denoised
    return settings.bound == "vlb" and plain and result.precision in (None, settings.precision)


def _command(split: str, run: Run, settings: EvaluateConfig, workdir: pathlib.Path) -> str:
    """Return the command whose evaluation keeps the numbers of a split."""
    words = ["vdm evaluate", f"--workdir={workdir}"]
    # That of test keeps as many training examples, unless it is the ODE's.
    words += [f"--split={split}"] if split != "test" and settings.bound == "ode" else []
    words += [f"--params={run.kind}"] if run.kind != "ema" else []
    words += ["--unconditional"] if settings.unconditional else []
    own = run.config.evaluate
    if settings.bound == "vlb" and "inf" not in split_words(own.num_steps):
        words += ["--num_steps=inf"]
    names = ["bound", "dequantisation", "num_samples", "ode_steps"]
    names += [] if settings.ode_steps else ["tolerance"]
    names += ["precision"] if settings.bound == "vlb" else []
    words += [
        f"--{name}={getattr(settings, name)}"
        for name in names
        if getattr(settings, name) != getattr(own, name)
    ]
    return f"{' '.join(words)}` keeps its numbers"
