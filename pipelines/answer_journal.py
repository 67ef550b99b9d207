"""What a unit has been answered so far, beside the records, so that a killed run asks for nothing twice.

A line an answer, its digest before it, so a torn or damaged line is known. On a local disk lines are appended to one
file: they are safe from the end of this process at once, from the machine's within a second, and cost 0.1 ms where a
published file costs 7. On an object store every batch is an object. By shard and not by unit: when the selection
changes between two runs, what was paid for is found all the same.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import polars as pl

from tokenmill.faults import fault_point
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.answers import table_of

FOLDER = "journal"
_DIGEST = 16
_SYNC_EVERY_S = 1.0
_PART_ANSWERS = 256


class AnswerJournal:
    """The answers to questions about one shard that stand in no record yet."""

    def __init__(self, folder: StageDir, shard: str, attempt: str) -> None:
        """Open the journal of a shard for one attempt at a unit, whose name the files of it begin with."""
        self._store = folder.store
        self._folder = folder.at(f"{FOLDER}/{shard}")
        self._attempt = attempt
        self._name = f"{attempt}-{uuid.uuid4().hex[:8]}"  # never that of another run
        self._parts = 0
        self._file: IO[bytes] | None = None
        self._synced = time.monotonic()
        self._read: dict[str, set[str]] = {}  # file → the questions it answers

    def known(self) -> pl.DataFrame:
        """Return every answer that can be read; `fresh` says which are of this attempt (in a run that was killed)."""
        tables = [table_of(()).with_columns(fresh=pl.lit(False))]
        for entry in self._store.files(self._folder):
            rows = list(_rows(self._store.read_bytes(entry.path)))
            self._read[entry.path] = {row["request"] for row in rows}
            is_fresh = entry.path.rsplit("/", 1)[-1].startswith(f"{self._attempt}-")
            tables.append(table_of(rows).with_columns(fresh=pl.lit(is_fresh)))
        return pl.concat(tables)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep some answers; they are safe when this returns."""
        for start in range(0, len(rows), _PART_ANSWERS):
            part = rows[start : start + _PART_ANSWERS]
            self._write(b"".join(map(_line, part)), {row["request"] for row in part})
        fault_point("journal:after-part")

    def _write(self, data: bytes, requests: set[str]) -> None:
        path = f"{self._folder}/{self._name}-{self._parts:06d}.jsonl"
        place = self._store.local_path(path)
        self._read.setdefault(path, set()).update(requests)
        if place is None:
            self._store.put(path, data)
            self._parts += 1
            return
        if self._file is None:
            place.parent.mkdir(parents=True, exist_ok=True)
            self._file = place.open("ab", buffering=0)
        self._file.write(data)
        if time.monotonic() - self._synced > _SYNC_EVERY_S:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def settle(self, recorded: Iterable[str]) -> None:
        """Remove the files whose answers all stand in records now."""
        self.close()
        known = set(recorded)
        self._store.delete_many([path for path, requests in self._read.items() if requests <= known])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _line(row: Mapping[str, Any]) -> bytes:
    text = json.dumps(dict(row), ensure_ascii=False).encode()
    return sha256_hex(text)[:_DIGEST].encode() + b" " + text + b"\n"


def _rows(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):
        digest, text = line[:_DIGEST], line[_DIGEST + 1 :]
        if text and sha256_hex(text)[:_DIGEST].encode() == digest:
            yield json.loads(text)
