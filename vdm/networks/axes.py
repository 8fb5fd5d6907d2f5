"""The spatial axes of a network: how many there are, and what lies beyond the ends of each."""

from collections.abc import Sequence

from vdm.choices import unknown

PADDINGS = ("zero", "wrap")
# The shape of a batch z of each number of axes.
SHAPES = {1: "[b, t, c]", 2: "[b, h, w, c]", 3: "[b, d, h, w, c]"}


def check_axes(axes: int) -> None:
    """Raise ValueError unless `axes` is 1, 2 or 3."""
    if not isinstance(axes, int) or axes not in SHAPES:
        raise ValueError(f"axes must be 1, 2 or 3, the number of spatial axes: got {axes!r}")


def each_axis(padding: str | Sequence[str], axes: int) -> tuple[str, ...]:
    """Return the padding of each axis, of a word for all axes or of one word for each.

    Raises ValueError for a word other than "zero" and "wrap", and for another number of words.
    """
    words = (padding,) * axes if isinstance(padding, str) else padding
    listed = isinstance(words, tuple | list) and all(isinstance(word, str) for word in words)
    if not listed or len(words) != axes:
        raise ValueError(
            f"padding must be zero or wrap, or one of them for each of {axes} axes: got {padding!r}"
        )
    for word in words:
        if word not in PADDINGS:
            raise ValueError(unknown("padding", word, PADDINGS))
    return tuple(words)


def check_rank(network: str, axes: int, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless z has a batch axis, `axes` spatial axes and one of channels."""
    got = len(shape) - 2
    if got == axes:
        return
    hints = []
    if got == axes - 1:
        hints.append("x[..., None] adds an axis of one channel")
    if got in SHAPES:
        hints.append(f"axes={got} is for {SHAPES[got]}")
    raise ValueError(
        f"{network}(axes={axes}) expects z of shape {SHAPES[axes]}: got shape {shape}"
        + (f" ({', '.join(hints)})" if hints else "")
    )
