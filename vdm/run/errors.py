"""The exception for mistakes that the user can fix: one line, never a traceback."""

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """A mistake in a config, a command or a file, stated in one line."""


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
