"""Pieces made by another thread before they are used: the same pieces, in the same order."""

import threading

import pytest

from vdm.run.system.ahead import made_ahead

SECONDS = 10.0  # until a test gives up


def test_all_pieces_come_in_order():
    assert list(made_ahead(iter(range(50)), 3)) == list(range(50))
    assert list(made_ahead(iter(()), 3)) == []


def test_pieces_are_made_before_they_are_used_and_not_too_many():
    made, fourth = [], threading.Event()

    def pieces():
        for i in range(10):
            made.append(i)
            if i == 3:
                fourth.set()
            yield i

    found = made_ahead(pieces(), 3)
    assert next(found) == 0
    assert fourth.wait(SECONDS)  # one in use, three ahead
    assert made == [0, 1, 2, 3]
    assert next(found) == 1
    found.close()
    assert max(made) <= 4


def test_an_error_comes_in_the_place_of_its_piece():
    def pieces():
        yield 0
        yield 1
        raise ValueError("the third cannot be read")

    found = made_ahead(pieces(), 5)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ValueError, match="the third cannot be read"):
        next(found)


def test_nothing_is_left_running_once_it_is_closed():
    before = threading.active_count()
    found = made_ahead(iter(range(1000)), 3)
    next(found)
    assert threading.active_count() == before + 1
    found.close()
    assert threading.active_count() == before
