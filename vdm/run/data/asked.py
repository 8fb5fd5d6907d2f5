"""Conditions that a user gives a trained run, checked against the kinds that it has."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from vdm.condition import Conditions
from vdm.run.data import beside
from vdm.run.data.beside import Called
from vdm.run.data.condition import Condition
from vdm.run.errors import UserError, as_user_error

MOST_NAMES = 6  # of a vector's numbers in a message
WORDS = {"label": "classes", "vector": "vectors", "field": "fields"}


def parts(given: ArrayLike | Conditions, condition: Condition, called: Called) -> Conditions:
    """Return what is given as parts of a condition: an array stands for the only kind.

    Raises UserError for an array where there are several kinds, for a kind that the run does not
    have, and for one that is missing.
    """
    names = condition.names
    if not isinstance(given, Conditions):
        if len(names) > 1:
            said = ", ".join(f"{name}=..." for name in names)
            raise UserError(
                f"this model has several conditions: expected cond=Conditions({said}), got an array"
            )
        return _arrays({names[0] if names else "label": given}, condition, called)
    return _arrays(given._asdict(), condition, called)


def checked(
    given: Conditions, condition: Condition, size: int, shape: tuple[int, ...], called: Called
) -> Conditions:
    """Return the parts for `size` examples of a shape, each as it must be.

    Labels become int32, vectors and fields stay in the user's units. Raises UserError for a class
    that the run does not have, another shape or type, and numbers that are not finite.
    """
    label, vector, field, _ = given
    if label is not None:
        assert condition.num_classes is not None
        label = classes(label, condition.num_classes, size, called.label)
    if vector is not None:
        vector = np.asarray(vector)
        c = _size(condition, "vector")
        _check_numbers(vector, called.vector)
        vector = vector[:, None] if c == 1 and vector.ndim == 1 else vector
        if vector.ndim == 2 and vector.shape[1] != c:
            count = f"{vector.shape[1]} number{'s' * (vector.shape[1] != 1)}"
            raise UserError(f"{called.vector} has {count}, expected {c} (cond_dim)")
        _check_shape(vector, (size, c), f"a vector for each of the {size} examples", called.vector)
        beside.check_finite(vector, called.vector)
    if field is not None:
        field = np.asarray(field)
        form = (size, *shape[:-1], _size(condition, "field"))
        _check_numbers(field, called.field)
        _check_shape(field, form, f"a field for each of the {size} examples", called.field)
        beside.check_finite(field, called.field)
    return Conditions(label, vector, field)


def classes(given: ArrayLike, known: int, size: int, what: str) -> np.ndarray:
    """Return the class of each of `size` examples as int32; raises UserError for another form."""
    found = np.asarray(given)
    expected = f"{what} must be a class from 0 to {known - 1} for each of the {size} examples"
    if found.shape != (size,) or found.dtype.kind not in "iu":
        raise UserError(f"{expected}: got {found.dtype} of shape {list(found.shape)}")
    if np.any(bad := (found < 0) | (found >= known)):
        first = int(np.argmax(bad))
        raise UserError(f"{expected}: got {found[first]} for example {first}")
    return found.astype(np.int32)


def kinds(condition: Condition, called: Called | None = None) -> str:
    """Return in words what a run is conditioned on, and what each kind is called."""
    names = ", ".join(condition.vector_names[:MOST_NAMES])
    names += ", ..." * (len(condition.vector_names) > MOST_NAMES)
    said = {
        "label": f"one of {condition.num_classes} classes",
        "vector": f"a vector of {_size(condition, 'vector')} numbers" + f" ({names})" * bool(names),
        "field": f"a field of {_size(condition, 'field')} channels",
    }
    if called is not None:
        said = {kind: f"{text} ({getattr(called, kind)})" for kind, text in said.items()}
    return " and ".join(said[name] for name in condition.names)


def missing(condition: Condition, size: int, called: Called) -> UserError:
    """Return the error of `size` examples without the conditions that a run needs."""
    said = {
        "label": f"{called.label}, a class from 0 to {(condition.num_classes or 0) - 1}",
        "vector": f"{called.vector}, a vector",
        "field": f"{called.field}, a field",
    }
    expected = " and ".join(said[name] for name in condition.names)
    return UserError(
        f"this model is conditioned on {kinds(condition)}: expected {expected} for each of the "
        f"{size} examples"
    )


def _arrays(
    given: Mapping[str, ArrayLike | None], condition: Condition, called: Called
) -> Conditions:
    """Return the parts as arrays; raises UserError unless they are the kinds of the run."""
    for kind, part in given.items():
        if part is not None and kind not in condition.names:
            raise UserError(
                f"{getattr(called, kind)} is given, but this model has no {WORDS[kind]}: "
                f"expected {kinds(condition) or 'none'}"
            )
    for kind in condition.names:
        if given.get(kind) is None:
            raise UserError(
                f"this model is conditioned on {kinds(condition)}: got no {getattr(called, kind)}"
            )
    found: dict[str, np.ndarray] = {}
    for kind, part in given.items():
        if part is not None:
            with as_user_error(getattr(called, kind)):
                found[kind] = np.asarray(part)
    return Conditions(**found)


def _size(condition: Condition, kind: str) -> int:
    scale = getattr(condition, kind)
    return 0 if scale is None else len(scale.mean)


def _check_numbers(values: np.ndarray, what: str) -> None:
    if values.dtype.kind not in "fiub":
        raise UserError(f"{what} must be numbers: got {values.dtype}")


def _check_shape(values: np.ndarray, form: tuple[int, ...], said: str, what: str) -> None:
    if values.shape != form:
        raise UserError(f"{what} must be {said}, of shape {list(form)}: got {list(values.shape)}")
