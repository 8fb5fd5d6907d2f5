"""What a network is told of an example: its class, how it was augmented, or both in one number."""

import dataclasses
from typing import Any

import numpy as np

from vdm.run.data import augment
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError


@dataclasses.dataclass(frozen=True)
class Condition:
    """The number class × num_flags + flag; None for what the network is not told."""

    num_classes: int | None = None
    num_flags: int | None = None

    def of(
        self, size: int, labels: np.ndarray | None, flags: np.ndarray | None = None
    ) -> np.ndarray | None:
        """Return the conditions of `size` examples; without flags they are as they came (0)."""
        if self.num_classes is None and self.num_flags is None:
            return None
        cond = np.zeros(size, np.int32)
        if self.num_classes is not None and labels is not None:
            cond += (labels * (self.num_flags or 1)).astype(np.int32)
        if self.num_flags is not None and flags is not None:
            cond += flags.astype(np.int32)
        return cond

    def of_samples(self, index: np.ndarray) -> np.ndarray | None:
        """Return the conditions to sample with: classes in turn, nothing augmented."""
        return self.of(len(index), index % (self.num_classes or 1))


def build(network: Any, data: Dataset, augmentation: str) -> Condition:
    """Return the condition that a network is built for, by its num_classes.

    Raises UserError when the data set and its augmentation do not give as many.
    """
    told = network.num_classes
    if augmentation == "none":
        if told not in (None, data.num_classes):
            have = "no classes" if data.num_classes is None else f"{data.num_classes} classes"
            raise UserError(f"model.network.num_classes is {told}, but {data.name} has {have}")
        return Condition(told)
    num_flags = augment.num_flags(augmentation, data.shape)
    if told == num_flags:
        return Condition(None, num_flags)
    both = None if data.num_classes is None else data.num_classes * num_flags
    if both is not None and told == both:
        return Condition(data.num_classes, num_flags)
    or_both = "" if both is None else f", or {both} for its {data.num_classes} classes as well"
    raise UserError(
        f"data.augment={augmentation!r} tells the network how an example was augmented: "
        f"model.network.num_classes must be {num_flags}{or_both}: got {told}"
    )
