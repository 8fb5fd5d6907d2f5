"""A mistyped name is answered with the nearest one that exists."""

import pytest

from vdm.choices import choose, unknown

OPTIONS = {"ancestral": 1, "ddim": 2, "heun": 3}


def test_known_names_are_looked_up():
    assert choose("sampler", "ddim", OPTIONS) == 2


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError) as error:
        choose("sampler", "ancestrl", OPTIONS)
    assert str(error.value) == (
        "unknown sampler 'ancestrl': expected one of ancestral, ddim, heun. "
        "Did you mean 'ancestral'?"
    )


def test_no_hint_without_a_near_name():
    assert "Did you mean" not in unknown("sampler", "qqqq", OPTIONS)
