"""The condition of an example: its class, how it was augmented, or both in one number."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from vdm.run.data import augment
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError


@dataclasses.dataclass(frozen=True)
class Condition:
    """The number class × num_flags + flag; None for a part that is absent."""

    num_classes: int | None = None
    num_flags: int | None = None

    def of(
        self, size: int, labels: np.ndarray | None, flags: np.ndarray | None = None
    ) -> np.ndarray | None:
        """Return the conditions of `size` examples; without flags they are not augmented (0)."""
        if self.num_classes is None and self.num_flags is None:
            return None
        cond = np.zeros(size, np.int32)
        if self.num_classes is not None and labels is not None:
            cond += (labels * (self.num_flags or 1)).astype(np.int32)
        if self.num_flags is not None and flags is not None:
            cond += flags.astype(np.int32)
        return cond

    def of_samples(self, index: np.ndarray) -> np.ndarray | None:
        """Return the conditions to sample with: classes in order, nothing augmented."""
        return self.of(len(index), index % (self.num_classes or 1))


def classes_of(network: object) -> int | None:
    """Return the number of classes of a network, None for one without; an own one may not say."""
    return getattr(network, "num_classes", None)


def is_optional(network: object) -> bool:
    """Return whether a network works without its condition too; an own one may not say."""
    return bool(getattr(network, "optional_cond", False))


def build(num_classes: int | None, shape: tuple[int, ...], augmentation: str) -> Condition:
    """Return the condition of a network with num_classes classes, for examples of a shape.

    The network's classes are those of the data set, the flags of the augmentation, or every pair
    of the two. Raises UserError for another number, whatever the data set.
    """
    if augmentation == "none":
        return Condition(num_classes)
    num_flags = augment.num_flags(augmentation, shape)
    if num_classes == num_flags:
        return Condition(None, num_flags)
    if num_classes is None or num_classes % num_flags:
        raise UserError(
            f"model.network.num_classes must be {num_flags}, the number of flags of data.augment="
            f"{augmentation!r}, or {num_flags} times the number of classes: got "
            f"{num_classes}"
        )
    return Condition(num_classes // num_flags, num_flags)


def checked(classes: ArrayLike, known: int, size: int, what: str) -> np.ndarray:
    """Return the class of each of `size` examples as int32; raises UserError for another form."""
    found = np.asarray(classes)
    expected = f"{what} must be a class from 0 to {known - 1} for each of the {size} examples"
    if found.shape != (size,) or found.dtype.kind not in "iu":
        raise UserError(f"{expected}: got {found.dtype} of shape {list(found.shape)}")
    if np.any(bad := (found < 0) | (found >= known)):
        first = int(np.argmax(bad))
        raise UserError(f"{expected}: got {found[first]} for example {first}")
    return found.astype(np.int32)


def check(condition: Condition, dataset: Dataset) -> None:
    """Raise UserError unless the data set has the classes of the condition."""
    classes, flags, have = condition.num_classes, condition.num_flags, dataset.num_classes
    if classes is None or classes == have:
        return
    if flags is None:
        there = "no classes" if have is None else f"{have} classes"
        raise UserError(f"model.network.num_classes is {classes}, but {dataset.name} has {there}")
    both = "" if have is None else f", or {have * flags} for the {have} classes of {dataset.name}"
    raise UserError(
        f"model.network.num_classes must be {flags}, the number of flags of data.augment"
        f"{both}: got {classes * flags}"
    )
