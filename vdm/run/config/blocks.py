"""The one constructor of a block: a name and its arguments."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from vdm.choices import unknown
from vdm.run.config import own
from vdm.run.errors import UserError, as_user_error

T = TypeVar("T")


def construct(key: str, block: Mapping[str, Any], options: Mapping[str, Callable[..., T]]) -> T:
    """Return the result of the constructor that a block names, called with the block's arguments.

    `key` is the block's in the config. Raises UserError for an unknown name, and for an
    argument that is unknown, missing, of another type or rejected by the constructor.
    """
    made = partial(key, block, options)
    with as_user_error(f"{key} ({block['name']})"):
        return made()


def partial(
    key: str,
    block: Mapping[str, Any],
    options: Mapping[str, Callable[..., T]],
    *,
    left_out: Collection[str] = (),
) -> Callable[..., T]:
    """Return the constructor that a block names, with the block's arguments filled in.

    `left_out` are the parameters that its caller fills in. Raises UserError for an unknown name,
    and for an argument that is unknown, missing or of another type.
    """
    arguments = dict(block)
    name = arguments.pop("name")
    constructor = own.find(key, name, options)
    known = parameters(constructor, left_out)
    for word, value in arguments.items():
        if not known:
            raise UserError(f"{key} {name!r} takes no arguments: got {word!r}")
        if word not in known:
            raise UserError(unknown(f"argument of {key} {name}", word, known))
        if own.is_own(name):
            continue  # the types of its arguments are for its author to check
        kinds = _kinds(known[word].annotation)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"{key}.{word} must be {expected}: got {value!r}")
    for word, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and word not in arguments:
            raise UserError(f"config key {f'{key}.{word}'!r} is missing")
    return functools.partial(constructor, **arguments)


def parameters(
    constructor: Callable[..., Any], left_out: Collection[str] = ()
) -> dict[str, inspect.Parameter]:
    """Return the parameters of a constructor that a config can set."""
    # Left out: the two fields that Flax adds to every module, which users do not set.
    try:
        signature = inspect.signature(constructor)
    except (TypeError, ValueError) as error:
        raise UserError(f"{constructor!r} has no signature to take arguments by") from error
    return {
        name: parameter
        for name, parameter in signature.parameters.items()
        if name not in ("parent", "name", *left_out)
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def of_text(key: str, text: str, known: Collection[str]) -> dict[str, Any]:
    """Return the block of a name, or of a name with numbers such as "heun:churn=0.2".

    `known` are the names of this package.
    """
    name, rest = own.split(text, known)
    block: dict[str, Any] = {"name": name}
    for word in rest.split(",") if rest else ():
        argument, _, value = word.partition("=")
        if argument in block:
            raise UserError(f"{key} {text!r}: {argument} is given twice")
        try:
            block[argument] = float(value)
        except ValueError as error:
            raise UserError(
                f"{key} {text!r}: {argument} must be a number: got {value!r}"
            ) from error
    return block


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
