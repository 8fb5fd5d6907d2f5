"""Links in the text of a page: `vdm.name` to its entry in the API, files to the page they are on.

The pages stay plain Markdown that reads alike on the site and in the repository. A `vdm.name` that
does not exist is a warning.
"""

import importlib
import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

log = logging.getLogger(__name__)
NAME = re.compile(r"vdm(\.[A-Za-z_]\w*)+")
# Where what is included from outside this folder links to has its page.
PAGES = {"benchmarks/README.md": "/measurements", "CHANGELOG.md": "/changelog"}


class CodeLinks(SphinxTransform):
    """Makes a reference of every `vdm.name` that stands alone in code in running text."""

    default_priority = 400

    def apply(self, **_: Any) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            text = literal.astext()
            if literal.get("classes") or not NAME.fullmatch(text):
                continue
            if not exists(text):
                log.warning("no such name: %s", text, location=literal)
                continue
            reference = addnodes.pending_xref(
                "", reftype="obj", refdomain="py", reftarget=text, refexplicit=False
            )
            reference["refdoc"] = self.env.docname
            literal.replace_self(reference)
            reference += literal


class FileLinks(SphinxTransform):
    """Turns a link to a file of the repository into one to the page that shows it."""

    default_priority = 400

    def apply(self, **_: Any) -> None:
        for reference in list(self.document.findall(addnodes.pending_xref)):
            page = PAGES.get(reference.get("reftarget", ""))
            if page is not None:
                reference.attributes.update(refdomain="std", reftype="doc", reftarget=page)


def exists(name: str) -> bool:
    """Return whether a dotted name is a module, or something in one."""
    module, _, rest = name.partition(".")
    found: Any = importlib.import_module(module)
    for part in rest.split("."):
        module = f"{module}.{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(module)
            except ModuleNotFoundError:
                return False
        found = getattr(found, part)
    return True


def setup(app: Sphinx) -> dict[str, bool]:
    """Hook into the reading of pages."""
    app.add_transform(CodeLinks)
    app.add_transform(FileLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
