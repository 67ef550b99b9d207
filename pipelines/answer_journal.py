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

from tokenmill.errors import StorageError
from tokenmill.faults import fault_point
from tokenmill.manifests.identity import safe_name, sha256_hex, short
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.answers import COLUMNS

FOLDER = "journal"
JOURNALED: dict[str, Any] = {**COLUMNS, "asking_ms": pl.Int64}  # of the stage, since the answers before
_DIGEST = 16
_SYNC_EVERY_S = 1.0
_PART_ANSWERS = 256


class AnswerJournal:
    """The answers to questions about one shard that may stand in no record yet."""

    def __init__(self, folder: StageDir, shard: str, attempt: str) -> None:
        """Open the journal of a shard (its whole name) for one attempt at a unit, which its files are named by."""
        self._store = folder.store
        self._folder = folder.at(f"{FOLDER}/{safe_name(shard)}-{short(sha256_hex(shard.encode()))[:8]}")
        self._attempt = attempt
        self._name = f"{attempt}-{uuid.uuid4().hex[:8]}"  # never that of another run
        self._parts = self._named = 0
        self._file: IO[bytes] | None = None
        self._synced = time.monotonic()
        self._read: dict[str, set[str]] = {}  # file → the askings it holds

    def known(self) -> pl.DataFrame:
        """Return every answer that can be read; a file that somebody else settles meanwhile holds none of ours."""
        tables = [pl.DataFrame(schema=JOURNALED)]
        for entry in self._store.files(self._folder):
            rows = self._rows_in(entry.path)
            if rows is None:
                continue
            self._read[entry.path] = {row["asked"] for row in rows}
            tables.append(pl.DataFrame(rows, schema=JOURNALED, orient="row"))
        return pl.concat(tables)

    def _rows_in(self, path: str) -> list[dict[str, Any]] | None:
        """Return a file's answers, or None if it is gone."""
        try:
            return list(journal_rows(self._store.read_bytes(path)))
        except StorageError:
            if self._store.exists(path):
                raise
            return None

    def new_asking(self) -> str:
        """Name an asking, as no other is named; see `is_mine`."""
        self._named += 1
        return f"{self._name}-{self._named}"

    def is_mine(self, asked: str) -> bool:
        """Say whether an asking was this very attempt's, in this run or one that was killed."""
        return asked.startswith(f"{self._attempt}-")

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep some answers; they are safe when this returns."""
        for start in range(0, len(rows), _PART_ANSWERS):
            part = rows[start : start + _PART_ANSWERS]
            self._write(b"".join(map(journal_line, part)), {row["asked"] for row in part})
        fault_point("journal:after-part")

    def _write(self, data: bytes, askings: set[str]) -> None:
        path = f"{self._folder}/{self._name}-{self._parts:06d}.jsonl"
        place = self._store.local_path(path)
        self._read.setdefault(path, set()).update(askings)
        if place is None:
            self._store.put(path, data)
            self._parts += 1
            return
        if self._file is None:
            place.parent.mkdir(parents=True, exist_ok=True)
            self._file = place.open("ab")
        self._file.write(data)
        self._file.flush()
        if time.monotonic() - self._synced > _SYNC_EVERY_S:
            self._sync()

    def _sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def settle(self, recorded: Iterable[str]) -> bool:
        """Remove the files whose answers all stand in records now, by their askings; says whether any file is left.

        A local file may have grown since it was read: Ray's workers outlive a killed run by seconds.
        """
        self.close()
        known = set(recorded)
        settled = [path for path, askings in self._read.items() if askings <= known and self._holds_only(path, known)]
        self._store.delete_many(settled)
        for path in settled:
            del self._read[path]
        return bool(self._read)

    def _holds_only(self, path: str, known: set[str]) -> bool:
        if self._store.local_path(path) is None or path.rpartition("/")[2].startswith(self._name):
            return True  # nobody else adds to it
        return all(row["asked"] in known for row in self._rows_in(path) or ())

    def close(self) -> None:
        """Have what was kept on the disk, and let go of the file."""
        self._sync()
        if self._file is not None:
            self._file.close()
            self._file = None


def journal_line(row: Mapping[str, Any]) -> bytes:
    """Return an answer as a line of a journal."""
    text = json.dumps(dict(row), ensure_ascii=False).encode()
    return sha256_hex(text)[:_DIGEST].encode() + b" " + text + b"\n"


def journal_rows(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the answers in a journal's file, but for torn and damaged lines."""
    for line in data.split(b"\n"):
        digest, text = line[:_DIGEST], line[_DIGEST + 1 :]
        if text and sha256_hex(text)[:_DIGEST].encode() == digest:
            yield json.loads(text)
