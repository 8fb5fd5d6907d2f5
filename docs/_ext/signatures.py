"""Makes docstrings and signatures read on the page as they read in the source.

Signatures are taken from the source, so that an array is `Float[Array, 'b *d']` and a callback
`EpsFn`, not what they unfold to. Docstrings are plain text: `*` and `|` in a formula are no
markup, and an indented block stands as it is.
"""

import ast
import builtins
import inspect
import re
import sys
import textwrap
from typing import Any

from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode


def signature(_app, what, _name, obj, _options, _args, _returns):
    """Return the signature in the source's own words; classes show their fields."""
    if not getattr(obj, "__module__", "").startswith("vdm"):
        return None  # imported; autodoc leaves it out, but asks
    if what in ("function", "method"):
        node = _parse(inspect.unwrap(obj))
        returns = _words(node.returns) if node.returns else None
        return f"({_words(_without_self(node.args))})", returns
    if what == "class":
        if getattr(obj, "_is_protocol", False):
            return "", None
        return f"({', '.join(_fields(_parse(obj)))})", None
    return None


def docstring(_app, _what, _name, _obj, _options, lines: list[str]) -> None:
    """Turn plain text into reStructuredText that shows the same."""
    lines[:] = to_rst("\n".join(lines)).splitlines()


def to_rst(text: str) -> str:
    """Escape what is no markup; make a literal block of every indented one."""
    # What is raised is a paragraph of its own on the page.
    text = re.sub(r"(?<=\S)\nRaises ", "\n\nRaises ", text.strip("\n"))
    blocks = re.split(r"\n\s*\n", text)
    return "\n\n".join(
        f"::\n\n{block}" if block.startswith(" ") else _escape(block) for block in blocks
    )


def skip(_app, _what, _name, obj, _skip, _options) -> bool | None:
    """Leave out the fields of NamedTuples: the signature has them, and they say no more."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def own_names(_app: Sphinx, doctree: Any) -> None:
    """Let a type in a signature be the one that the object's own module calls by this name."""
    for described in doctree.findall(addnodes.desc_signature):
        module = sys.modules.get(described.get("module"))
        # A package shows what its modules define, and need not know the types that they name.
        shown = getattr(module, described.get("fullname", "").partition(".")[0], None)
        module = sys.modules.get(getattr(shown, "__module__", None) or "", module)
        for reference in described.findall(addnodes.pending_xref):
            named = getattr(module, reference["reftarget"], None)
            if inspect.isclass(named) and named.__module__.startswith("vdm."):
                reference["py:module"] = named.__module__


def resolve(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """Link a name to the one object that ends in it; show other names that exist as text."""
    if node.get("refdomain") != "py":
        return None
    target, objects = node["reftarget"].removeprefix("vdm."), env.get_domain("py").objects
    found = [name for name in objects if name.endswith(f".{target}")]
    # In prose, backticks hold arguments and values as often as names: of another module's names
    # only those are meant that say whose they are.
    prose = node["reftype"] == "obj"
    if len(found) == 1 and not (prose and target == node["reftarget"] and "." not in target):
        entry = objects[found[0]]
        return make_refnode(
            app.builder, node["refdoc"], entry.docname, entry.node_id, content, found[0]
        )
    if prose or hasattr(builtins, target):
        return content
    # A type that has no entry of its own, or that of another library, whose inventory is not
    # fetched: it has at least to be what the module calls by this name.
    inside, name = node.get("py:module", "vdm"), target.partition(".")[0]
    there = (m for key, m in sys.modules.items() if f"{key}.".startswith(f"{inside}."))
    return content if any(hasattr(module, name) for module in there) else None


def _parse(obj: Any) -> Any:
    return ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]


class _Stripped(ast.NodeTransformer):
    """Takes off the space that jaxtyping's strings begin with for the linter's sake alone."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str):
            return ast.Constant(node.value.strip())
        return node


def _words(node: ast.AST) -> str:
    return ast.unparse(_Stripped().visit(node))


def _without_self(arguments: ast.arguments) -> ast.arguments:
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        arguments.args = arguments.args[1:]
    return arguments


def _fields(node: ast.ClassDef) -> list[str]:
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    inits = [item for item in node.body if getattr(item, "name", "") == "__init__"]
    if inits:
        return [_words(_without_self(inits[0].args))]
    return [_words(field) for field in fields]


def _escape(text: str) -> str:
    pieces = re.split(r"(`+[^`]+`+)", text)
    return "".join(
        piece if piece.startswith("`") else re.sub(r"([\\*|]|(?<=\w)_(?=\W|$))", r"\\\1", piece)
        for piece in pieces
    )


def setup(app: Sphinx) -> dict[str, bool]:
    """Hook into autodoc."""
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-read", own_names)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
