"""Work that is asked for one piece ahead, so that the host and a device work at the same time."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def one_ahead(pieces: Iterable[T]) -> Iterator[T]:
    """Yield the pieces in order, each once the next one is made; no more than two are held.

    A piece that a device computes is dispatched when it is made, and waited for when it is used.
    """
    made = iter(pieces)
    try:
        first = next(made)
    except StopIteration:
        return
    for second in made:
        yield first
        first = second
    yield first
