"""Examples and conditions given to a trained run, checked before anything is computed."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from vdm.condition import Conditions
from vdm.run.data import arrays, asked, condition as conditions, point_sets
from vdm.run.data.beside import Called
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import Dataset, in_memory
from vdm.run.errors import UserError, as_user_error
from vdm.run.run import Run
from vdm.run.training import checks

Cond = ArrayLike | Conditions | None
IN_PARTS = Called("cond.label", "cond.vector", "cond.field")


def batch(run: Run, x: ArrayLike, cond: Cond) -> tuple[Dataset, Condition]:
    """Return an array of examples as a data set, and what the model is given of each.

    Raises UserError for another shape or type than the run's, for what is not finite, for integers
    that are no levels, and as `parts`.
    """
    with as_user_error("x"):
        x = np.asarray(x)
    if run.condition.points is not None:
        return _sets(run, x, cond)
    if x.shape == run.shape:
        raise UserError(f"x is one example, of shape {list(x.shape)}: expected x[None], a batch")
    if x.shape[1:] != run.shape or not len(x):
        raise UserError(
            f"x must be examples of shape {list(run.shape)}, the batch axis first, at least one: "
            f"got shape {list(x.shape)}"
        )
    check_type(run, x.dtype, "x")
    called = IN_PARTS if isinstance(cond, Conditions) else Called("cond", "cond", "cond")
    beside, condition = parts(run, cond, len(x), called)
    labels = None if beside.label is None else np.asarray(beside.label)
    found = arrays.conditioned(arrays.given(x, labels, "x"), beside, called)
    checks.check_values(run.model, found)
    return found, condition


def _sets(run: Run, x: np.ndarray, cond: Cond) -> tuple[Dataset, Condition]:
    """Return sets with their mask as a data set; the rest is as `batch`."""
    if not isinstance(cond, Conditions) or cond.mask is None:
        raise UserError(
            "this model is one of sets: expected cond=Conditions(mask=...), booleans [n, n_max] "
            "that say which points there are"
        )
    check_type(run, x.dtype, "x")
    rest = cond._replace(mask=None)
    known = None if all(part is None for part in rest) else rest
    beside, condition = parts(run, known, len(x) if x.ndim else 0, IN_PARTS, x.shape[1:])
    named = {name: getattr(beside, kind) for kind, _, name in conditions.KINDS}
    arrays_there = {name: np.asarray(part) for name, part in named.items() if part is not None}
    found = point_sets.read({"x": x, "mask": np.asarray(cond.mask), **arrays_there}, "x")
    data = fitting(run, point_sets.dataset(found, "all", version="x", what="x"))
    checks.check_values(run.model, data)
    return data, condition


def fitting(run: Run, data: Dataset) -> Dataset:
    """Return sets with as much padding as a run's model has been given.

    Raises UserError for sets of more points than the run knows, or points of another dimension.
    """
    most, there = run.shape[0], in_memory(data.examples)
    if data.shape[1:] != run.shape[1:] or data.shape[0] > most:
        raise UserError(
            f"{data.version} must be sets of at most {most} points of {run.shape[1]} numbers: got "
            f"up to {data.shape[0]} points of {data.shape[1]} numbers"
        )
    more = ((0, 0), (0, most - data.shape[0]), (0, 0))
    assert there.mask is not None
    wide = dataclasses.replace(
        there,
        x=np.pad(there.x, more),
        mask=np.pad(there.mask, more[:2]),
        field=None if there.field is None else np.pad(there.field, more),
    )
    return dataclasses.replace(data, examples=wide)


def check_type(run: Run, dtype: np.dtype, what: str) -> None:
    """Raise UserError for real numbers where the model has levels, and for integers otherwise."""
    levels = run.model.likelihood.levels
    if levels is not None and dtype.kind not in "iub":
        raise UserError(f"{what} must be integers from 0 to {levels - 1}: got {dtype}")
    if levels is None and dtype.kind != "f":
        raise UserError(f"{what} must be real numbers, such as float32: got {dtype}")


def parts(
    run: Run, cond: Cond, size: int, called: Called, shape: tuple[int, ...] | None = None
) -> tuple[Conditions, Condition]:
    """Return the conditions of examples, and what the model is given of them.

    The examples are of the run's shape, or of another `shape` with other padding.
    Without them the bound is the unconditional one, for a model that was trained with and without.
    Raises UserError where the model needs conditions, knows none, or not these.
    """
    condition = run.condition
    if cond is not None:
        found = asked.parts(cond, condition, called)
        return asked.checked(found, condition, size, shape or run.shape, called), condition
    if not condition.names:
        return Conditions(), condition
    if conditions.is_optional(run.model.network):
        return Conditions(), condition.without()
    raise asked.missing(condition, size, called)
