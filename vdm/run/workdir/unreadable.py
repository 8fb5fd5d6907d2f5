"""Why a checkpoint cannot be read, in our words: orbax's are about its own arguments."""

import pathlib

import jax
import orbax.checkpoint as ocp


def reason(folder: pathlib.Path, target: object) -> str:
    """Return what is wrong with the state in a folder, "is damaged: ...", of a tree of shapes.

    An array of another form than that of `target` belongs to another model.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                path.open("rb").close()
            except OSError as error:
                return f"cannot be read: {path.relative_to(folder)}: {error.strerror}"
    try:
        there = _forms(ocp.StandardCheckpointHandler().metadata(folder).tree)
    # For a damaged file orbax and tensorstore raise errors of several types.
    except Exception:
        return "is damaged: the index of its arrays cannot be read"
    expected = _forms(target)
    for name in sorted(there.keys() | expected.keys()):
        got, wanted = (forms.get(name, "not there") for forms in (there, expected))
        if got != wanted:
            return (
                "is damaged or belongs to another model: "
                f"its array {name} is {got}, expected {wanted}"
            )
    return "is damaged: its numbers cannot be read"


def _forms(tree: object) -> dict[str, str]:
    """Return type and shape of every array of a tree, by its path in it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype} {list(leaf.shape)}"
        for path, leaf in leaves
    }
