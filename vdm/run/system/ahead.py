"""Work that is asked for one piece ahead, so that the host and a device work at the same time."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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


def made_ahead(pieces: Iterator[T], depth: int) -> Generator[T]:
    """Yield the pieces in order, made by another thread up to `depth` of them before they are used.

    An error of a piece is raised in its place. Closing the generator waits for the piece that is
    being made.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as maker:
        waiting = deque(maker.submit(next, pieces, end) for _ in range(depth))
        try:
            while (piece := waiting.popleft().result()) is not end:
                waiting.append(maker.submit(next, pieces, end))
                yield piece  # type: ignore[misc]
        finally:
            maker.shutdown(cancel_futures=True)
