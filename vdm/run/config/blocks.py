"""The one constructor of a block: a name and its arguments."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vdm.choices import unknown
from vdm.run.errors import UserError, as_user_error


def construct(
    what: str, block: Mapping[str, Any], options: Mapping[str, Callable[..., Any]]
) -> Any:
    """Call the constructor that a block names, once its arguments are known to be of its kind."""
    arguments = dict(block)
    name = arguments.pop("name")
    if name not in options:
        raise UserError(unknown(what, name, options))
    prefix = f"model.{what}."
    # Flax adds the two that are left out to every module; they are not the user's.
    known = {
        key: parameter
        for key, parameter in inspect.signature(options[name]).parameters.items()
        if key not in ("parent", "name")
    }
    for key, value in arguments.items():
        if key not in known:
            raise UserError(unknown("config key", prefix + key, [prefix + k for k in known]))
        kinds = _kinds(known[key].annotation)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"config key {prefix + key!r} must be {expected}: got {value!r}")
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in arguments:
            raise UserError(f"config key {prefix + key!r} is missing")
    with as_user_error(f"model.{what} ({name})"):
        return options[name](**arguments)


def _kinds(annotation: Any) -> tuple[type, ...]:
    """Return the plain types that an annotation takes: an int for a float, a tuple for a list."""
    parts = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    kinds: list[type] = []
    for part in parts:
        part = typing.get_origin(part) or part
        if part is float:
            kinds += [int, float]
        elif isinstance(part, type) and issubclass(part, Sequence) and part is not str:
            kinds.append(tuple)
        else:
            kinds.append(part)
    return tuple(dict.fromkeys(kinds))


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)
