"""Writes rollups while a stage runs: new records in small files soon, small files merged into larger ones.

A file is merged only with at least half its own number of new records, and not at all once it is full, so a record is
written about ten times at most, and beside the full files stand a handful of small ones. New files are published before
the old ones go, so a run killed anywhere leaves at worst some records in two of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import polars as pl

from tokenmill.errors import ManifestError, StorageError
from tokenmill.faults import fault_point
from tokenmill.manifests.ledger import Ledger
from tokenmill.manifests.packed import pieces_of
from tokenmill.manifests.records import Commit
from tokenmill.manifests.rollups import FoundRollups, RollupSize, parse_rollup, rollup_bytes, rollup_path

log = logging.getLogger(__name__)
WRITE_EVERY = 1_000  # records: what a killed run leaves to be read singly, at most
FEWEST = 64  # records: a stage with fewer needs no rollup
FULL_RECORDS = 32_768  # a file of 7 MB; reading it takes 100 MB for a moment
FULL_BYTES = 2**25


class RollupWriter:
    """Keeps the rollups of one folder up with its ledger; a store that refuses costs a warning, not the run."""

    def __init__(self, ledger: Ledger, found: FoundRollups) -> None:
        self._ledger, self._folder = ledger, ledger.folder
        self._sizes, self._loose, self._bad = dict(found.sizes), list(found.loose), list(found.bad)
        self._is_refused = False

    def prepare(self) -> None:
        """Put right what was found, before any unit is done.

        A row whose record was removed has to be gone before the unit is done again: its new record has the old name.
        """
        self._write_if(WRITE_EVERY if not self._bad else FEWEST)
        for path in self._bad:
            self._delete(path)
        self._bad = []

    def add(self, commit: Commit) -> None:
        """Take a new record into the ledger, and write a rollup when there are enough."""
        self._loose.append(self._ledger.add(commit))
        self._write_if(WRITE_EVERY)

    def finish(self) -> None:
        """Write what is left, if that is worth a file."""
        self._write_if(FEWEST)

    def _write_if(self, fewest: int) -> None:
        while len(self._loose) >= fewest and not self._is_refused:
            some, self._loose = self._loose[:FULL_RECORDS], self._loose[FULL_RECORDS:]
            try:
                self._write(self._ledger.rows(some))
            except StorageError as error:
                log.warning("cannot write a rollup (%s); the next run reads the records one by one", error)
                self._is_refused = True

    def _write(self, rows: pl.DataFrame) -> None:
        absorbed = to_absorb(self._sizes, RollupSize(rows.height, int(rows["record"].bin.size().sum())))
        frames = [rows, *(frame for path in absorbed if (frame := self._read(path)) is not None)]
        merged = pl.concat(frames).unique(["unit", "attempt", "record_sha256"]).sort("unit", "attempt", "record_sha256")
        sizes = merged["record"].bin.size().to_list()
        fault_point("rollup:before-publish")
        new: dict[str, RollupSize] = {}
        for start, end in pieces_of(sizes, most=FULL_RECORDS, most_bytes=FULL_BYTES):
            data = rollup_bytes(self._folder, merged[start:end])
            path = rollup_path(self._folder, data)
            self._folder.store.put(path, data)
            new[path] = RollupSize(end - start, sum(sizes[start:end]))
            fault_point("rollup:after-publish")
        for path in absorbed:
            del self._sizes[path]
            if path not in new:
                self._delete(path)
                fault_point("rollup:half-removed")
        self._sizes |= new

    def _read(self, path: str) -> pl.DataFrame | None:
        try:
            return parse_rollup(self._folder, path, self._folder.store.read_bytes(path))
        except (StorageError, ManifestError):
            return None  # another run merged it, or it went bad meanwhile: its records still stand

    def _delete(self, path: str) -> None:
        try:
            self._folder.store.delete(path)
        except StorageError as error:
            log.debug("%s", error)  # another run was first


def to_absorb(sizes: Mapping[str, RollupSize], new: RollupSize) -> list[str]:
    """Choose which rollups to merge with `new` records: the smallest first, while they are not much larger."""
    records, num_bytes, chosen = new.records, new.bytes, []
    for path, size in sorted(sizes.items(), key=lambda item: (item[1].records, item[0])):
        if size.records > 2 * records or records + size.records > FULL_RECORDS or num_bytes + size.bytes > FULL_BYTES:
            break
        records, num_bytes = records + size.records, num_bytes + size.bytes
        chosen.append(path)
    return chosen
