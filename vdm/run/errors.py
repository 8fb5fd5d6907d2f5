"""The exception for mistakes that the user can fix: one line, never a traceback."""

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """A mistake in a config, a command or a file, stated in one line."""


def one_line(text: str) -> str:
    """Return a text with everything that is not printable escaped, so that it stays one line.

    A name of the user's own may hold a line break, or what would move the terminal's cursor.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextlib.contextmanager
def as_user_error(where: str) -> Iterator[None]:
    """Turn the ValueError or TypeError of a validating constructor into a UserError.

    Only for code that checks what the user wrote: an error from deep inside a
    computation is ours and keeps its traceback.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from error
