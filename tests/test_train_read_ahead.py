"""Work done ahead: in order, no further than asked, and ended by whoever stops taking it."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from tokenmill.train.read_ahead import ahead

PATIENCE_S = 20.0


@pytest.mark.parametrize("most", [1, 3])
def test_ahead_makes_as_many_as_asked_while_one_is_used_and_no_more(most: int) -> None:
    begun: list[int] = []
    reached = threading.Event()

    def made(number: int) -> int:
        begun.append(number)
        if number == most:
            reached.set()
        return number

    with closing(ahead(made, range(100), threads=2, most=most, timeout_s=PATIENCE_S)) as results:
        assert next(results) == 0
        assert reached.wait(PATIENCE_S)
        assert sorted(begun) == list(range(most + 1))


def test_ahead_function_that_fails_tells_in_its_turn() -> None:
    def made(number: int) -> int:
        if number == 3:
            raise KeyError(number)
        return number

    results = ahead(made, range(10), threads=3, most=4, timeout_s=PATIENCE_S)

    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)
    assert list(results) == []


def test_ahead_left_early_begins_nothing_more_and_ends_its_threads() -> None:
    begun: list[int] = []
    before = threading.active_count()
    results = ahead(lambda number: begun.append(number), range(1000), threads=2, most=5, timeout_s=PATIENCE_S)
    next(results)

    results.close()

    assert len(begun) <= 6
    assert threading.active_count() == before


def test_ahead_of_a_function_that_hangs_gives_up_in_time() -> None:
    go_on = threading.Event()

    def made(number: int) -> int:
        if number:
            go_on.wait(PATIENCE_S)
        return number

    results = ahead(made, range(3), threads=1, most=2, timeout_s=0.2)
    assert next(results) == 0
    threading.Timer(0.6, go_on.set).start()

    with pytest.raises(TimeoutError):
        next(results)
