"""Examples and conditions given to a trained run, checked before anything is computed."""

import numpy as np
from numpy.typing import ArrayLike

from vdm.condition import Conditions
from vdm.run.data import arrays, asked, condition as conditions
from vdm.run.data.beside import Called
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError, as_user_error
from vdm.run.run import Run
from vdm.run.training import checks

Cond = ArrayLike | Conditions | None


def batch(run: Run, x: ArrayLike, cond: Cond) -> tuple[Dataset, Condition]:
    """Return an array of examples as a data set, and what the model is given of each.

    Raises UserError for another shape or type than the run's, for what is not finite, for integers
    that are no levels, and as `parts`.
    """
    with as_user_error("x"):
        x = np.asarray(x)
    if x.shape == run.shape:
        raise UserError(f"x is one example, of shape {list(x.shape)}: expected x[None], a batch")
    if x.shape[1:] != run.shape or not len(x):
        raise UserError(
            f"x must be examples of shape {list(run.shape)}, the batch axis first, at least one: "
            f"got shape {list(x.shape)}"
        )
    check_type(run, x.dtype, "x")
    called = Called("cond.label", "cond.vector", "cond.field")
    if not isinstance(cond, Conditions):
        called = Called("cond", "cond", "cond")
    beside, condition = parts(run, cond, len(x), called)
    labels = None if beside.label is None else np.asarray(beside.label)
    found = arrays.conditioned(arrays.given(x, labels, "x"), beside, called)
    checks.check_values(run.model, found)
    return found, condition


def check_type(run: Run, dtype: np.dtype, what: str) -> None:
    """Raise UserError for real numbers where the model has levels, and for integers otherwise."""
    levels = run.model.likelihood.levels
    if levels is not None and dtype.kind not in "iub":
        raise UserError(f"{what} must be integers from 0 to {levels - 1}: got {dtype}")
    if levels is None and dtype.kind != "f":
        raise UserError(f"{what} must be real numbers, such as float32: got {dtype}")


def parts(run: Run, cond: Cond, size: int, called: Called) -> tuple[Conditions, Condition]:
    """Return the conditions of examples, and what the model is given of them.

    Without them the bound is the unconditional one, for a model that was trained with and without.
    Raises UserError where the model needs conditions, knows none, or not these.
    """
    condition = run.condition
    if cond is not None:
        found = asked.parts(cond, condition, called)
        return asked.checked(found, condition, size, run.shape, called), condition
    if not condition.names:
        return Conditions(), condition
    if conditions.is_optional(run.model.network):
        return Conditions(), Condition()
    raise asked.missing(condition, size, called)
