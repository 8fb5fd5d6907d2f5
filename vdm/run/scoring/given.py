"""Examples and classes given to a trained run, checked before anything is computed."""

import numpy as np
from numpy.typing import ArrayLike

from vdm.run.data import arrays, condition as conditions
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError, as_user_error
from vdm.run.run import Run
from vdm.run.training import checks


def batch(run: Run, x: ArrayLike, cond: ArrayLike | None) -> tuple[Dataset, Condition]:
    """Return an array of examples as a data set, and what the model is given of each.

    Raises UserError for another shape or type than the run's, for what is not finite, for integers
    that are no levels, and as `classes`.
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
    labels, condition = classes(run, cond, len(x))
    found = arrays.given(x, labels, "x")
    checks.check_values(run.model, found)
    return found, condition


def check_type(run: Run, dtype: np.dtype, what: str) -> None:
    """Raise UserError for real numbers where the model has levels, and for integers otherwise."""
    levels = run.model.likelihood.levels
    if levels is not None and dtype.kind not in "iub":
        raise UserError(f"{what} must be integers from 0 to {levels - 1}: got {dtype}")
    if levels is None and dtype.kind != "f":
        raise UserError(f"{what} must be real numbers, such as float32: got {dtype}")


def classes(
    run: Run, cond: ArrayLike | None, size: int, what: str = "cond"
) -> tuple[np.ndarray | None, Condition]:
    """Return the classes of examples, and what the model is given of them.

    Without classes the bound is the unconditional one, for a model that was trained with and
    without them. Raises UserError where the model needs classes, knows none, or not these.
    """
    known = run.condition.num_classes
    if known is None:
        if cond is not None:
            raise UserError(f"{what} is given, but this model has no classes: expected none")
        return None, run.condition
    if cond is not None:
        return conditions.checked(cond, known, size, what), run.condition
    if conditions.is_optional(run.model.network):
        return None, Condition()
    raise UserError(
        f"this model is conditioned on one of {known} classes: expected {what}, a class from 0 to "
        f"{known - 1} for each of the {size} examples"
    )
