"""Reading samples by their places: the right bytes in the right order, in few reads, errors where they belong."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenmill.errors import StorageError
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.reading import Place, ordered_map, read_places

CONTENT = {f"file{number}": bytes((number * 31 + i) % 251 for i in range(5000)) for number in range(3)}


class CountingStore(Store):
    """The real store, which also counts its ranged reads."""

    reads = 0

    def read_range(self, path: str, start: int, length: int) -> bytes:
        self.reads += 1
        return super().read_range(path, start, length)


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    store = CountingStore(str(tmp_path))
    for name, data in CONTENT.items():
        store.put(name, data)
    return store


places = st.builds(Place, st.sampled_from(sorted(CONTENT)), st.integers(0, 4000), st.integers(0, 1000))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(places, max_size=30))
def test_read_places_yields_the_bytes_of_every_place_in_order(store, wanted):
    found = list(read_places(store, wanted))
    assert found == [CONTENT[place.path][place.offset : place.offset + place.length] for place in wanted]


def test_read_places_joins_neighbours_into_one_read(store):
    wanted = [Place("file0", offset, 10) for offset in range(0, 3000, 20)]
    assert b"".join(read_places(store, wanted)) == b"".join(CONTENT["file0"][p.offset : p.offset + 10] for p in wanted)
    assert store.reads == 1


def test_read_places_reads_across_a_large_gap_twice(tmp_path):
    store = CountingStore(str(tmp_path))
    store.put("big", bytes(2 * 2**20))
    assert list(read_places(store, [Place("big", 0, 4), Place("big", 2**20, 4)])) == [bytes(4), bytes(4)]
    assert store.reads == 2


def test_read_places_stops_a_read_before_it_grows_too_large(tmp_path):
    store = CountingStore(str(tmp_path))
    store.put("big", bytes(20 * 2**20))
    wanted = [Place("big", number * 2**20, 2**20) for number in range(20)]
    assert sum(len(data) for data in read_places(store, wanted)) == 20 * 2**20
    assert store.reads == 3


def test_read_places_of_a_file_that_is_gone_raises_and_names_it(store):
    with pytest.raises(StorageError, match="gone"):
        list(read_places(store, [Place("file0", 0, 4), Place("gone", 0, 4)]))


def test_read_places_of_a_file_that_is_too_short_raises_and_names_it(store):
    with pytest.raises(StorageError, match="file1"):
        list(read_places(store, [Place("file1", 4990, 100)]))


def test_ordered_map_keeps_the_order_and_bounds_what_is_under_way():
    lock, running, most = threading.Lock(), [0], [0]

    def square(number: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        with lock:
            running[0] -= 1
        return number * number

    taken: list[int] = []

    def numbers():
        for number in range(50):
            taken.append(number)
            yield number

    results = ordered_map(square, numbers(), threads=4, window=6)
    assert next(results) == 0
    assert len(taken) <= 7
    assert list(results) == [number * number for number in range(1, 50)]
    assert most[0] <= 4


def test_ordered_map_passes_an_error_on_in_its_place():
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    found = []
    with pytest.raises(ValueError, match="three"):
        found.extend(ordered_map(work, range(10), threads=2, window=4))
    assert found == [0, 1, 2]


def test_ordered_map_left_early_does_not_hang():
    for number in ordered_map(lambda x: x, range(1000), threads=2, window=4):
        if number == 5:
            break
    assert open_store("memory://x").url == "memory://x"


def test_ordered_map_given_up_in_one_of_its_own_threads_ends_there():
    """As the garbage collector may do it: whoever waits for the pool here waits for himself."""
    given_up, outcome, yielded = [], Future(), threading.Event()

    def function(item):
        if item == 1:
            yielded.wait(10)
            try:
                given_up[0].close()
                outcome.set_result("closed")
            except BaseException as error:
                outcome.set_exception(error)
        return item

    given_up.append(ordered_map(function, range(8), threads=2, window=2))
    assert next(given_up[0]) == 0
    yielded.set()
    assert outcome.result(timeout=10) == "closed"
    assert list(given_up[0]) == []
