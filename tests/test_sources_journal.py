"""The journal of a unit that fetches: damage is fetched again, and what was fetched again is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.errors import SampleError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.sources.journal import Journal
from tokenmill.pipelines.sources.source import IndexRow

_BUSY = SampleError("http_503", "busy", transient=True)


def _row(number: int, error: SampleError | None = None) -> IndexRow:
    payload = None if error else f"picture {number}".encode()
    sha256 = sha256_hex(payload) if payload else ""
    return IndexRow(key=str(number), path="p", payload=payload, sha256=sha256, error=error)


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "head", "middle", "last"])
def test_damaged_part_ends_what_is_known_and_reaches_no_parser(tmp_path, damage):
    store = open_store(str(tmp_path))
    list(Journal(store, "j/u.0").kept(iter(_row(n) for n in range(512))))
    one, two = (tmp_path / entry.path for entry in store.files("j"))
    two.write_bytes(_damaged(two.read_bytes(), damage))
    assert [row and row.key for row in Journal(store, "j/u.0").known()] == [str(n) for n in range(256)]
    one.write_bytes(_damaged(one.read_bytes(), damage))
    assert not list(Journal(store, "j/u.0").known())


def _damaged(data: bytes, how: str) -> bytes:
    place = {"head": 8, "middle": len(data) // 2, "last": len(data) - 1}.get(how)
    if place is not None:
        return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]
    return {"cut": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data))}[how]


def test_row_that_is_fetched_again_is_kept_at_the_next_kill(tmp_path: Path):
    store = open_store(str(tmp_path))
    busy = {3, 300}
    list(Journal(store, "j/u.0").kept(_row(n, _BUSY if n in busy else None) for n in range(600)))
    again = Journal(store, "j/u.0")
    missing = [number for number, row in enumerate(again.known()) if row is None]
    assert missing == [3, 300]
    list(again.kept(_row(n, _BUSY if n == 300 else None) for n in range(768)))
    third = list(Journal(store, "j/u.0").known())
    assert [number for number, row in enumerate(third) if row is None] == [300]
    assert len(third) == 768
