"""What a model is given of an example: a class, a vector, a field, or several of them.

The class may say too how the example was augmented, both in one number. Vectors and fields are in
the user's units up to here, and reach the model standardised: less the mean of the training split,
over its standard deviation, for each entry of the vector and each channel of the field. A network
that has one kind is given an array, one that has several `vdm.condition.Conditions`.
"""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from vdm import sets
from vdm.condition import Condition as Given, Conditions, num_rows, take
from vdm.networks import NumberNetwork
from vdm.run.data import augment
from vdm.run.data.dataset import Dataset, Examples
from vdm.run.data.moments import Moments, spread
from vdm.run.errors import UserError

NUM_KEPT = 64  # example conditions that a run keeps to sample with
KEPT_BYTES = 2**24  # of them at most, but for one
GOLDEN = (5**0.5 - 1) / 2
# The part of Conditions, the network's argument, and what an array of it is called.
KINDS = (
    ("label", "num_classes", "labels"),
    ("vector", "cond_dim", "cond"),
    ("field", "cond_channels", "cond_field"),
)


@dataclasses.dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each entry of the last axis; what is constant has std 1.

    `names` are those of the entries, where the data have any.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: tuple[str, ...] = ()

    def applied(self, values: np.ndarray) -> np.ndarray:
        """Return (values − mean)/std as float32, computed in float64."""
        found = (np.asarray(values, np.float64) - np.asarray(self.mean)) / np.asarray(self.std)
        return found.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Condition:
    """The kinds of a network's condition: None for each that it does not have.

    A class and a flag are one number, class × num_flags + flag. `vector` and `field` are the scales
    of these. `some` are conditions of training examples, in the user's units, to sample with.
    `points` is what a network of sets has to know of the number of points: the most that there are,
    and their law where it is one for all sets.
    """

    num_classes: int | None = None
    num_flags: int | None = None
    vector: Scale | None = None
    field: Scale | None = None
    some: Conditions | None = dataclasses.field(default=None, compare=False)
    points: "Points | None" = None

    @property
    def names(self) -> tuple[str, ...]:
        """The parts of `Conditions` that the user gives: classes, but no flags."""
        there = (self.num_classes, self.vector, self.field)
        return tuple(kind for (kind, *_), one in zip(KINDS, there, strict=True) if one is not None)

    def without(self) -> "Condition":
        """Return what is left without the conditions: of sets the number of their points."""
        return Condition(points=self.points)

    @property
    def vector_names(self) -> tuple[str, ...]:
        """What the numbers of a vector are called, where the training data say so."""
        return () if self.vector is None else self.vector.names

    def of(
        self, size: int, labels: np.ndarray | None, flags: np.ndarray | None = None
    ) -> np.ndarray | None:
        """Return the numbers of `size` examples; without flags they are not augmented (0)."""
        if self.num_classes is None and self.num_flags is None:
            return None
        cond = np.zeros(size, np.int32)
        if self.num_classes is not None and labels is not None:
            cond += (labels * (self.num_flags or 1)).astype(np.int32)
        if self.num_flags is not None and flags is not None:
            cond += flags.astype(np.int32)
        return cond

    def of_parts(
        self, size: int, parts: Conditions, flags: np.ndarray | None = None
    ) -> Given | None:
        """Return what the model is given of `size` examples with these parts, None for nothing."""
        found = Conditions(
            self.of(size, None if parts.label is None else np.asarray(parts.label), flags),
            None if self.vector is None else self.vector.applied(np.asarray(parts.vector)),
            None if self.field is None else self.field.applied(np.asarray(parts.field)),
            None if self.points is None else np.asarray(parts.mask),
        )
        there = jax.tree.leaves(found)
        if not there:
            return None
        # A mask by itself would be taken for another kind.
        return there[0] if len(there) == 1 and found.mask is None else found

    def of_examples(self, examples: Examples, flags: np.ndarray | None = None) -> Given | None:
        """Return what the model is given of examples; without flags they are not augmented."""
        return self.of_parts(len(examples), parts_of(examples), flags)

    def of_samples(self, index: np.ndarray) -> Given | None:
        """Return the conditions to sample with: those of `samples`, nothing augmented."""
        return self.of_parts(len(index), self.samples(index))

    def samples(self, index: np.ndarray) -> Conditions:
        """Return conditions for samples in the user's units: classes in order, or those kept.

        What is kept is taken one after the other, again from the first after the last.
        """
        mask = self.masks(index)
        if self.vector is None and self.field is None:
            labels = None if self.num_classes is None else index % self.num_classes
            return Conditions(labels, mask=mask)
        assert self.some is not None, "a run keeps conditions of its training split"
        found = take(self.some, index % num_rows(self.some))._asdict()
        if found["field"] is not None and found["mask"] is not None:
            mask = found["mask"]  # what is known of each point goes with its number of points
        # Labels are kept wherever the data have them.
        return Conditions(**{kind: found[kind] for kind in self.names}, mask=mask)

    def masks(self, index: np.ndarray, laws: sets.NumberLaws | None = None) -> np.ndarray | None:
        """Return the masks of samples of sets by their positions; None for other data.

        The numbers of points are quantiles of their law, or each of its own of the `laws`, evenly
        spread: that of sample i at the fractional part of (j + 1) φ + k/K, φ being the golden
        ratio, j the quotient and k the remainder of i and the K classes. So they are even among
        the samples of each class too, which stand in order. By a law that depends on the condition
        they are the model's to find (`vdm.run.sample.with_numbers`): without its `laws` they are
        the most here, where only the form matters.
        """
        if self.points is None:
            return None
        turn, own = np.divmod(np.asarray(index), self.num_classes or 1)
        u = np.mod((turn + 1) * GOLDEN + own / (self.num_classes or 1), 1.0)
        return self.points.masks(u, laws)


class Points(NamedTuple):
    """The most points of a set, and the law of their number; without one it is always the most."""

    most: int
    law: sets.NumberLaw | None

    def masks(self, u: np.ndarray, laws: sets.NumberLaws | None = None) -> np.ndarray:
        """Return a mask for each u in [0, 1), by its own of the `laws` where there are any."""
        numbers = np.full(len(u), self.most)
        law = self.law if laws is None else laws
        if law is not None:
            numbers = law.quantile(u)
        return sets.of_lengths(numbers, self.most)


def parts_of(examples: Examples) -> Conditions:
    """Return what examples are conditioned on, in the user's units."""
    return Conditions(examples.labels, examples.vector, examples.field, examples.mask)


def is_optional(network: object) -> bool:
    """Return whether a network works without its condition too; an own one may not say."""
    return bool(getattr(network, "optional_cond", False))


def build(
    network: object,
    shape: tuple[int, ...],
    augmentation: str,
    kept: Condition = Condition(),
    law: sets.NumberLaw | NumberNetwork | None = None,
) -> Condition:
    """Return the condition of a network for examples of a shape, with what is `kept` of scales.

    The network's classes are those of the data set, the flags of the augmentation, or every pair
    of the two. Vectors and fields that are not kept have no scale yet: None, as those that the
    network does not take. A network of sets is given masks, for samples by the `law` of the number
    of points, if that is one for all sets. Raises UserError for another number of classes, whatever
    the data set.
    """
    num_classes: int | None = getattr(network, "num_classes", None)
    num_flags = None
    if augmentation != "none":
        num_flags = augment.num_flags(augmentation, shape)
        if getattr(network, "cond_channels", None):
            raise UserError(
                f"data.augment={augmentation!r} would turn examples and not their fields: expected "
                "data.augment='none' with model.network.cond_channels"
            )
        if num_classes == num_flags:
            num_classes = None
        elif num_classes is None or num_classes % num_flags:
            raise UserError(
                f"model.network.num_classes must be {num_flags}, the number of flags of "
                f"data.augment={augmentation!r}, or {num_flags} times the number of classes: got "
                f"{num_classes}"
            )
        else:
            num_classes //= num_flags
    vector = kept.vector if getattr(network, "cond_dim", None) else None
    field = kept.field if getattr(network, "cond_channels", None) else None
    of_all = None if isinstance(law, NumberNetwork) else law
    points = Points(shape[0], of_all) if is_of_sets(network) else None
    return Condition(num_classes, num_flags, vector, field, kept.some, points)


def is_of_sets(network: object) -> bool:
    """Return whether a network is one of sets, which is given their masks."""
    return bool(getattr(network, "masked", False))


def needs_scale(network: object) -> bool:
    """Return whether a network takes vectors or fields, which it is given standardised."""
    return any(getattr(network, argument, None) for _, argument, _ in KINDS[1:])


def learned(network: object, data: Dataset) -> Condition:
    """Return the scales of a training set's vectors and fields, and some of its conditions.

    Raises UserError where the data have none that the network needs, or of another size.
    """
    if not needs_scale(network):
        return Condition()
    sizes = {kind: getattr(network, argument, None) for kind, argument, _ in KINDS[1:]}
    for kind, size in sizes.items():
        if size:
            check_size(kind, size, data)
    kept = ["label", *(kind for kind, size in sizes.items() if size), "mask"]

    def some(index: np.ndarray) -> Conditions:
        found = parts_of(data.take(index))
        return Conditions(**{kind: getattr(found, kind) for kind in kept})

    index = np.linspace(0, len(data) - 1, min(NUM_KEPT, len(data))).round().astype(int)
    num_bytes = sum(part.nbytes for part in jax.tree.leaves(some(index[:1])))
    index = index[:: -(-len(index) * num_bytes // KEPT_BYTES)]
    vector = _scale_of(data.vector, data.vector_names)
    return Condition(None, None, vector, _scale_of(data.field), some(index))


def _scale_of(found: Moments | None, names: tuple[str, ...] = ()) -> Scale | None:
    if found is None:
        return None
    return Scale(tuple(found.mean.tolist()), tuple(map(spread, found.variance.tolist())), names)


def check(condition: Condition, dataset: Dataset) -> None:
    """Raise UserError unless the data set has the classes, vectors and fields of the condition."""
    if condition.points is not None and dataset.points is None:
        raise UserError(
            f"this network is one of sets, and {dataset.name} has none: expected data.name='sets', "
            "points with a mask or lengths"
        )
    if condition.points is None and dataset.points is not None:
        raise UserError(
            f"{dataset.name} are sets of points: expected a network that takes masks, such as "
            "model.network.name='set_transformer'"
        )
    for kind, *_ in KINDS[1:]:
        scale: Scale | None = getattr(condition, kind)
        if scale is not None:
            check_size(kind, len(scale.mean), dataset)
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


def check_size(kind: str, size: int, data: Dataset) -> None:
    """Raise UserError unless the data have vectors, or fields, of a size that a network takes."""
    argument, array = next(names for own, *names in KINDS if own == kind)
    found: Moments | None = getattr(data, kind)
    if found is None:
        raise UserError(
            f"model.network.{argument} is {size}, but {data.version} has no {kind}s: expected an "
            f"array {array} beside the examples"
        )
    if len(found.mean) != size:
        what = "numbers" if kind == "vector" else "channels"
        raise UserError(
            f"model.network.{argument} is {size}, but the {kind}s of {data.version} ({array}) have "
            f"{len(found.mean)} {what}"
        )


def unused(network: object, data: Dataset) -> list[str]:
    """Return a line for each vector or field of the data that the network does not take."""
    return [
        f"the {kind}s of {data.version} ({array}) are not used: the network takes them with "
        f"model.network.{argument}={len(getattr(data, kind).mean)}"
        for kind, argument, array in KINDS[1:]
        if getattr(data, kind) is not None and not getattr(network, argument, None)
    ]
