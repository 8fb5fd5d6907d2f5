"""JSON documents as typed values: the fields of a dataclass or a NamedTuple are the keys.

A value of another type is an error of one line that names the file and the key. A key without a
field is ignored: a later version may have written it.
"""

import dataclasses
import datetime
import inspect
import json
import pathlib
import sys
import types
import typing
from types import GenericAlias
from typing import Annotated, Any, Literal, TypeVar, Union

from vdm.run.errors import UserError
from vdm.run.system.files import read_json

T = TypeVar("T")
FLAT = "flat"  # Annotated[Record, FLAT]: its keys are in the record that it is part of
MOST = 2**63  # a whole number below it fits into any array


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """Annotated[int, AtLeast(1)]: a number that must not be below this one."""

    least: int


Count = Annotated[int, AtLeast(1)]
Whole = Annotated[int, AtLeast(0)]
NotNegative = Annotated[float, AtLeast(0)]
SCALARS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "a text",
    datetime.datetime: "a date and time",
    type(None): "null",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in which file a value stands; the key of the whole document is empty."""

    path: pathlib.Path
    key: str = ""

    def at(self, key: str) -> "Place":
        """Return the place of a key of the object here."""
        key = key if key.isidentifier() else json.dumps(key)
        return Place(self.path, f"{self.key}.{key}" if self.key else key)

    def item(self, i: int) -> "Place":
        """Return the place of an item of the list here, counted from 0."""
        return Place(self.path, f"{self.key}[{i}]")

    def wrong(self, expected: str, got: object) -> UserError:
        """Return the error for a value that is not what was expected here."""
        where = f"{self.path}: {self.key} must be" if self.key else f"{self.path} must hold"
        return UserError(f"{where} {expected}: got {_shown(got)}")

    def missing(self, key: str, expected: str) -> UserError:
        """Return the error for a key that the object here lacks."""
        return UserError(f"{self.path}: {self.at(key).key} is missing: expected {expected}")


def load(kind: type[T] | GenericAlias, path: pathlib.Path) -> T:
    """Return the document in a file; raises UserError if it is damaged or of another form."""
    return read(kind, read_json(path), Place(path))


def read(kind: type[T] | GenericAlias, value: object, place: Place) -> T:
    """Return a JSON value as `kind`; raises UserError where it is of another form.

    A kind is a number, a text, a date, a record, or a tuple[X, ...], dict[str, X], Literal or union
    of such; of a union there is at most one record. A field with a default may be absent.
    """
    return typing.cast(T, _read(kind, value, place))


def plain(value: Any) -> Any:
    """Return a value in plain JSON types, without the fields that are None or False by default."""
    if _is_record(type(value)):
        found: dict[str, Any] = {}
        for name, hint, default in _fields(type(value)):
            item = getattr(value, name)
            if FLAT in typing.get_args(hint):
                found |= plain(item)
            elif not (item is default and item in (None, False)):
                found[name] = plain(item)
        return found
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.isoformat() if isinstance(value, datetime.datetime) else value


def _read(kind: Any, value: object, place: Place) -> object:
    outer, inner = typing.get_origin(kind), typing.get_args(kind)
    if outer is Annotated:
        found = _read(inner[0], value, place)
        least: list[int] = [mark.least for mark in inner[1:] if isinstance(mark, AtLeast)]
        if isinstance(found, int | float) and any(found < one for one in least):
            raise place.wrong(_words(kind), value)
        return found
    if outer in (Union, types.UnionType):
        return _of_union(kind, value, place)
    if outer is tuple:
        if not isinstance(value, list):
            raise place.wrong(_words(kind), value)
        return tuple(_read(inner[0], item, place.item(i)) for i, item in enumerate(value))
    if outer is dict or _is_record(kind):
        if not isinstance(value, dict):
            raise place.wrong(_words(kind), value)
        if outer is dict:
            return {key: _read(inner[1], item, place.at(key)) for key, item in value.items()}
        return _record(kind, value, place)
    if outer is Literal:
        if not (isinstance(value, str) and value in inner):
            raise place.wrong(_words(kind), value)
        return value
    return _scalar(kind, value, place)


def _record(kind: Any, value: dict[str, object], place: Place) -> object:
    found = {}
    for name, hint, default in _fields(kind):
        if FLAT in typing.get_args(hint):
            found[name] = _read(hint, value, place)
        elif name in value:
            found[name] = _read(hint, value[name], place.at(name))
        elif default is inspect.Parameter.empty:
            raise place.missing(name, _words(hint))
    return kind(**found)


def _of_union(kind: Any, value: object, place: Place) -> object:
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    if value is None and len(options) < len(typing.get_args(kind)):
        return None
    if len(options) == 1:  # its own message is more exact
        return _read(options[0], value, place)
    for option in options:
        try:
            return _read(option, value, place)
        except UserError:
            continue
    raise place.wrong(_words(kind), value)


def _scalar(kind: Any, value: object, place: Place) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number and abs(typing.cast(float, value)) <= sys.float_info.max:
        return float(typing.cast(float, value))
    if kind is int and number and isinstance(value, int) and abs(value) < MOST:
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            if kind is datetime.datetime:
                return datetime.datetime.fromisoformat(value)
            if kind is str:
                value.encode()  # half of a surrogate pair is not a text
                return value
        except ValueError:
            pass
    raise place.wrong(_words(kind), value)


def _fields(kind: Any) -> list[tuple[str, Any, object]]:
    """Return name, annotation and default of the fields of a record."""
    hints = typing.get_type_hints(kind, include_extras=True)
    parameters = inspect.signature(kind).parameters
    return [(name, hints[name], parameter.default) for name, parameter in parameters.items()]


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"))


def _words(kind: Any) -> str:
    """Return what a kind is called in a message."""
    outer, inner = typing.get_origin(kind), typing.get_args(kind)
    if outer is Annotated:
        least = [f" of at least {mark.least}" for mark in inner[1:] if isinstance(mark, AtLeast)]
        return _words(inner[0]) + "".join(least)
    if outer in (Union, types.UnionType):
        return " or ".join(_words(option) for option in inner)
    if outer is Literal:
        return " or ".join(json.dumps(word) for word in inner)
    if outer is tuple:
        return "a list"
    return "an object" if outer is dict or _is_record(kind) else SCALARS[kind]


def _shown(value: object) -> str:
    if isinstance(value, dict | list | tuple):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
