"""A field of a config's block: its type, its default, its meaning and its rule."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from vdm.run.config.rules import Rule
from vdm.run.errors import UserError

T = TypeVar("T")


class Field(typing.NamedTuple):
    """A field with all that the check, the command line and the docs page need."""

    name: str
    kind: type  # a block of a name and arguments is a Mapping
    default: Any  # dataclasses.MISSING where every config must set it
    says: str
    rule: Rule | None  # None where the type is enough
    flag: str  # its option on the command line, without the dashes
    needs_bound: str | None  # the bound of `vdm evaluate` that it is for, None for all


def option(
    default: T,
    says: str,
    rule: Rule | None = None,
    *,
    flag: str | None = None,
    needs_bound: str | None = None,
) -> T:
    """Return a dataclass field with a default value, its meaning and its rule."""
    metadata = {"says": says, "rule": rule, "flag": flag, "needs_bound": needs_bound}
    if isinstance(default, Mapping):  # each config gets its own
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)  # type: ignore[return-value]
    return dataclasses.field(default=default, metadata=metadata)


def needed(says: str, rule: Rule | None = None) -> Any:
    """Return a dataclass field that every config must set, with its meaning and its rule."""
    return dataclasses.field(metadata={"says": says, "rule": rule})


def of(block: type) -> tuple[Field, ...]:
    """Return the fields of a block; those that are blocks themselves are left out."""
    kinds = typing.get_type_hints(block)
    return tuple(
        _field(field, kinds[field.name])
        for field in dataclasses.fields(block)
        if not dataclasses.is_dataclass(kinds[field.name])
    )


def _field(field: dataclasses.Field[Any], kind: Any) -> Field:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    says, needs_bound = field.metadata["says"], field.metadata.get("needs_bound")
    return Field(
        name=field.name,
        kind=typing.get_origin(kind) or kind,
        default=default,
        says=says if needs_bound is None else f"{needs_bound}: {says}",
        rule=field.metadata["rule"],
        flag=field.metadata.get("flag") or field.name,
        needs_bound=needs_bound,
    )


def checked(field: Field, value: object, key: str) -> Any:
    """Return the value as the field's type; raises UserError with the key if it is not valid."""
    problem = _problem(field, value, key)
    if problem is not None:
        raise UserError(problem)
    return float(value) if field.kind is float and isinstance(value, int) else value


def takes(field: Field, value: object) -> bool:
    """Return whether a value is of the field's type and within its rule."""
    return _problem(field, value, field.name) is None


def check(settings: object, prefix: str) -> None:
    """Raise UserError for the first field of a block whose value is not valid."""
    for field in of(type(settings)):
        checked(field, getattr(settings, field.name), prefix + field.name)


def _problem(field: Field, value: object, key: str) -> str | None:
    is_kind = isinstance(value, (int, float) if field.kind is float else field.kind)
    if not is_kind or (isinstance(value, bool) and field.kind is not bool):
        got = f"{value!r} ({type(value).__name__})"
        return f"{key} must be of type {field.kind.__name__}: got {got}"
    return None if field.rule is None else field.rule.problem(key, value)
