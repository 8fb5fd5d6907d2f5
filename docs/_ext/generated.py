"""Puts the pages of `reference` where their markers stand, each time the site is built."""

from reference import fill
from sphinx.application import Sphinx


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    filled = fill(source[0])
    if filled != source[0]:
        # The page is made of the code, whose changes Sphinx does not see.
        app.env.note_reread()
        source[0] = filled


def setup(app: Sphinx) -> dict[str, bool]:
    """Hook into the reading of pages."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
