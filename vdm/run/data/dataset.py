"""One split of a data set: its examples, in memory or decoded on demand, and their description."""

import concurrent.futures
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vdm.condition import Conditions
from vdm.run.data.moments import Moments

# Sets up to this size are decoded once, into one array: that of 32×32 ImageNet is 3.7 GiB.
MEMORY_LIMIT = 4 * 2**30
CHUNK_BYTES = 2**22  # of examples that are read at a time
READERS = 8  # threads that decode


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Examples in memory: x has the batch axis first; classes and ids where there are any.

    So are the vectors [n, c] and fields [n, *d, c] that they are conditioned on, in the user's
    units.
    """

    x: np.ndarray
    labels: np.ndarray | None = None
    ids: np.ndarray | None = None  # texts
    vector: np.ndarray | None = None
    field: np.ndarray | None = None
    mask: np.ndarray | None = None  # of sets: which points there are, [n, n_max]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.x.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """The type of the numbers in x."""
        return self.x.dtype

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: np.ndarray) -> "Examples":
        """Return the examples of an index, in its order."""
        others = (self.labels, self.ids, self.vector, self.field, self.mask)
        return Examples(self.x[index], *(None if part is None else part[index] for part in others))


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """Examples on disk, which `take(index)` decodes whenever they are asked for."""

    size: int
    shape: tuple[int, ...]
    dtype: np.dtype
    take: Callable[[np.ndarray], Examples]
    beside: int = 0  # bytes of an example's vector and field

    def __len__(self) -> int:
        return self.size


class Largest(NamedTuple):
    """The largest of the integers that a split is taken from, and where it is."""

    value: int
    where: str


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set, named with its version."""

    name: str
    split: str
    examples: Examples | Stored
    version: str
    num_classes: int | None = None
    levels: int | None = None  # of integer data, where the set defines them
    largest: Largest | None = None  # of integer data, where nothing defines the levels
    moments: Moments | None = None  # of real numbers
    taken: str = ""  # what the user's files were taken for, in a line
    vector: Moments | None = None  # of the vectors that examples are conditioned on, if any
    vector_names: tuple[str, ...] = ()  # of their numbers, where a file has them
    field: Moments | None = None  # of the fields, for each channel
    files: tuple[str, ...] | None = None  # of a folder of images: the path of each in it
    points: np.ndarray | None = None  # of sets: the number of points of each

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.examples.shape

    @property
    def num_dims(self) -> int:
        """The number of dimensions of one example."""
        return math.prod(self.shape)

    @property
    def dims(self) -> np.ndarray:
        """The number of dimensions of every example: of sets, that of its own points."""
        if self.points is None:
            return np.full(len(self), self.num_dims)
        return self.points * self.shape[-1]

    @property
    def x(self) -> np.ndarray:
        """Every example; of a stored set all are decoded, so ask for a part with `take`."""
        return in_memory(self.examples).x

    @property
    def labels(self) -> np.ndarray | None:
        """Every example's class; of a stored set all examples are decoded."""
        return in_memory(self.examples).labels

    def __len__(self) -> int:
        return len(self.examples)

    def take(self, index: np.ndarray) -> Examples:
        """Return the examples of an index, in its order."""
        return self.examples.take(index)

    def named(self, split: str) -> "Dataset":
        """Return the data set as a split of another name."""
        return dataclasses.replace(self, split=split)

    def subset(self, index: np.ndarray) -> "Dataset":
        """Return the data set with only these examples."""
        take = self.examples.take
        part: Examples | Stored
        if isinstance(self.examples, Examples):
            part = take(index)
        else:
            part = dataclasses.replace(
                self.examples, size=len(index), take=lambda inner: take(index[inner])
            )
        files = None if self.files is None else tuple(self.files[i] for i in index)
        points = None if self.points is None else self.points[index]
        return dataclasses.replace(self, examples=part, files=files, points=points)


def with_parts(dataset: Dataset, parts: Conditions) -> Dataset:
    """Return a data set whose examples have these conditions, in the user's units."""
    label, vector, field, mask = (None if part is None else np.asarray(part) for part in parts)

    def take(index: np.ndarray) -> Examples:
        own = {
            name: part[index]
            for name, part in (
                ("labels", label),
                ("vector", vector),
                ("field", field),
                ("mask", mask),
            )
            if part is not None
        }
        return dataclasses.replace(dataset.take(index), **own)

    examples = dataset.examples
    one = examples.take(np.arange(1))
    # With the mask of sets, which they have whatever else they are given.
    beside = (one.mask, *(part for part in (vector, field, mask)))
    sizes = (part.nbytes // len(part) for part in beside if part is not None)
    stored = Stored(len(examples), examples.shape, examples.dtype, take, sum(sizes))
    return dataclasses.replace(dataset, examples=stored)


def settle(dataset: Dataset, where: str) -> Dataset:
    """Return the data set with its examples in memory ("yes") or as they are stored ("no").

    "auto" is in memory up to MEMORY_LIMIT.
    """
    fits = where == "yes" or (where == "auto" and num_bytes(dataset.examples) <= MEMORY_LIMIT)
    return dataclasses.replace(dataset, examples=in_memory(dataset.examples)) if fits else dataset


def num_bytes(examples: Examples | Stored) -> int:
    """Return the size of all examples when decoded."""
    of_x = len(examples) * math.prod(examples.shape) * examples.dtype.itemsize
    if isinstance(examples, Stored):
        return of_x + len(examples) * examples.beside
    others = (examples.vector, examples.field)
    return of_x + sum(part.nbytes for part in others if part is not None)


def in_memory(examples: Examples | Stored) -> Examples:
    """Return the examples decoded into one array; examples already in memory are not copied."""
    if isinstance(examples, Examples):
        return examples
    # Filled in place: a list of parts to join would need the memory twice.
    x = np.empty((len(examples), *examples.shape), examples.dtype)
    one = examples.take(np.arange(1)) if examples.beside else Examples(x[:1])
    there = (one.vector, one.field, one.mask)
    vector, field, mask = (_as_many(part, len(examples)) for part in there)

    def fill(index: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        part = examples.take(index)
        x[index] = part.x
        for whole, some in ((vector, part.vector), (field, part.field), (mask, part.mask)):
            if whole is not None and some is not None:
                whole[index] = some
        return part.labels, part.ids

    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        work = [pool.submit(fill, index) for index in chunks(examples)]
        try:
            labels, ids = zip(*(done.result() for done in work), strict=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Examples(x, _join(labels), _join(ids), vector, field, mask)


def ids_checksum(dataset: Dataset) -> str:
    """Return the SHA-256 of the ids of all examples, one per line.

    It identifies what was evaluated. The id of an example is that of the set itself if it has ids
    (tensorflow-datasets' `id`), else the example's position and the SHA-256 of its values.
    """
    digest = hashlib.sha256()
    for index in chunks(dataset.examples):
        part = dataset.take(index)
        for i, x in enumerate(part.x):
            own = f"{index[i]}:{content_hash(x)}" if part.ids is None else str(part.ids[i])
            digest.update(f"{own}\n".encode())
    return digest.hexdigest()


def ids_of(dataset: Dataset) -> dict[str, np.ndarray]:
    """Return what names every example: `id`, the set's own or the position, and `label` if any."""
    parts = [(index, dataset.take(index)) for index in chunks(dataset.examples)]
    found = {"id": np.concatenate([i if p.ids is None else p.ids for i, p in parts])}
    labels = _join([part.labels for _, part in parts])
    return found if labels is None else {**found, "label": labels}


def content_hash(x: np.ndarray) -> str:
    """Return the SHA-256 of an array's values."""
    return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()


def held_out(num_examples: int, split: str) -> np.ndarray:
    """Return the examples of a split of a set that has no splits: a tenth, rounded up, is test.

    The choice is a draw without replacement that depends only on the number of examples.
    """
    order = np.random.RandomState(0).permutation(num_examples)
    num_test = -(-num_examples // 10)
    return np.sort(order[:num_test] if split == "test" else order[num_test:])


def chunks(examples: Examples | Stored) -> Iterator[np.ndarray]:
    """Yield the positions of all examples, in chunks of a good size for reading."""
    size = len(examples)
    step = max(1, CHUNK_BYTES * size // max(1, num_bytes(examples)))
    for start in range(0, size, step):
        yield np.arange(start, min(start + step, size))


def _as_many(part: np.ndarray | None, size: int) -> np.ndarray | None:
    """Return an empty array of `size` rows like those of a part."""
    return None if part is None else np.empty((size, *part.shape[1:]), part.dtype)


def _join(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if there else None
