"""Typed values from JSON and back, and one line for what is of another form."""

import dataclasses
import datetime
import json
import pathlib
from typing import Annotated, Literal, NamedTuple

import pytest

from vdm.run.errors import UserError
from vdm.run.system import document
from vdm.run.system.document import FLAT, AtLeast, Place

PLACE = Place(pathlib.Path("run/case.json"))


class Inner(NamedTuple):
    x: float
    y: Annotated[float, AtLeast(0)] | None


@dataclasses.dataclass(frozen=True)
class Beside:
    colour: str
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    inner: Inner
    beside: Annotated[Beside, FLAT]
    steps: Annotated[int, AtLeast(1)] | Literal["inf"]
    many: tuple[Inner, ...]
    names: dict[str, float]
    began: datetime.datetime
    flag: bool = False
    more: float | None = None


WHOLE = {
    "inner": {"x": 1.5, "y": None},
    "colour": "blue",
    "seed": 0,
    "steps": "inf",
    "many": [{"x": 1.0, "y": 0.0}, {"x": -2.0, "y": 3.0}],
    "names": {"a": 1.0},
    "began": "2026-11-26T01:20:29+00:00",
    "flag": True,
    "more": 0.0,
}


def read(**values):
    return document.read(Case, {**WHOLE, **values}, PLACE)


def test_every_field_is_read_and_written_back():
    found = read()
    assert found == Case(
        inner=Inner(1.5, None),
        beside=Beside("blue", 0),
        steps="inf",
        many=(Inner(1.0, 0.0), Inner(-2.0, 3.0)),
        names={"a": 1.0},
        began=datetime.datetime(2026, 11, 26, 1, 20, 29, tzinfo=datetime.UTC),
        flag=True,
        more=0.0,
    )
    assert document.plain(found) == WHOLE
    assert json.loads(json.dumps(document.plain(found))) == WHOLE


def test_what_has_its_default_need_not_be_there_and_is_left_out():
    fewer = {key: value for key, value in WHOLE.items() if key not in ("flag", "more", "seed")}
    found = document.read(Case, fewer, PLACE)
    assert (found.flag, found.more, found.beside.seed) == (False, None, None)
    assert document.plain(found) == fewer
    # What a later version has written besides is ignored.
    assert document.read(Case, {**fewer, "later": 1}, PLACE) == found


def test_a_whole_number_is_a_number():
    found = read(inner={"x": 2, "y": 3}).inner
    assert found == Inner(2.0, 3.0) and isinstance(found.x, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"y": None}}, "inner.x is missing: expected a finite number"),
        ({"inner": {"x": 1.0}}, "inner.y is missing: expected a finite number of at least 0 or"),
        ({"inner": []}, "inner must be an object: got a list of 0"),
        ({"inner": {"x": True, "y": None}}, "inner.x must be a finite number: got true"),
        ({"inner": {"x": float("nan"), "y": None}}, "inner.x must be a finite number: got NaN"),
        ({"inner": {"x": 10**400, "y": None}}, "inner.x must be a finite number: got 1000"),
        ({"many": {"x": 1.0}}, "many must be a list: got an object of 1"),
        ({"many": [{"x": 1, "y": 1}, 3]}, r"many\[1\] must be an object: got 3"),
        ({"many": [{"x": 1, "y": -1}]}, r"many\[0\].y must be a finite .* at least 0: got -1"),
        ({"steps": 0}, 'steps must be a whole number of at least 1 or "inf": got 0'),
        ({"steps": 2.0}, "steps must be .*: got 2.0"),
        ({"steps": 2**63}, "steps must be .*: got 9223372036854775808"),
        ({"steps": ["inf"]}, "steps must be .*: got a list of 1"),
        ({"names": {"a b": "1"}}, 'names."a b" must be a finite number: got "1"'),
        ({"began": "yesterday"}, 'began must be a date and time: got "yesterday"'),
        ({"flag": None}, "flag must be true or false: got null"),
        ({"colour": 7}, "colour must be a text: got 7"),
        ({"colour": "\ud800"}, r'colour must be a text: got "\\ud800"'),
        ({"seed": "a\nb" + 99 * "c"}, r'seed must be a whole number: got "a\\nbc{50,60}\.\.\.$'),
    ],
)
def test_what_is_of_another_form_is_one_line(values, message):
    with pytest.raises(UserError, match=f"^run/case.json: {message}") as caught:
        read(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "case.json must hold an object: got a list of 2"),
        ("null", "case.json must hold an object: got null"),
        ("{}", "case.json: inner is missing: expected an object"),
        ("", "case.json is damaged"),
        (100_000 * "[", "case.json is damaged"),
        ("\xff", "case.json is damaged"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path, text, message):
    path = tmp_path / "case.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        document.load(Case, path)
