"""Where the records lie that concern a slice: those of other units about the same files, found by name alone.

Answers are increments and codes are costly, so what a unit may take over lies in units of other selections, of other
cuts of the shard and, where many files make one unit (loose pictures, films), of other groups of files: a picture more
in a folder moves the borders. A unit names its first and its last file; whatever overlaps is looked at. One listing
for all units of a folder, made when the first of them is worked on.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, overload

import polars as pl

from tokenmill.manifests.identity import digest_of, safe_name
from tokenmill.manifests.records import Commit, InputRef
from tokenmill.manifests.rollups import read_ledger
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.ingest import ALONE
from tokenmill.pipelines.samples import SampleSlice

_FEW = 64
_STEM = r"^(.*?)(-\d{8})?-[0-9a-f]{16}$"
Record = tuple[str, int]  # unit and attempt


@dataclass(frozen=True, slots=True)
class Span:
    """The files that something is about, by name: from the first to the last."""

    first: str
    last: str

    @classmethod
    def of_piece(cls, piece: SampleSlice) -> Span:
        names = [reference.name for reference in piece.commit.inputs]
        return cls(names[0], names[-1])

    @classmethod
    def of_record(cls, commit: Commit) -> Span:
        """Read a record whose unit said where it ends; see `references_of_last`."""
        first, last = commit.inputs[0], commit.inputs[-1]
        return cls(first.name, last.name if last.digest == digest_of(last.name) else first.name)

    def overlaps(self, other: Span) -> bool:
        return self.first <= other.last and other.first <= self.last


def references_of_last(piece: SampleSlice) -> tuple[InputRef, ...]:
    """Return what a unit about many files says behind its other inputs: which the last of them is."""
    span = Span.of_piece(piece)
    return () if span.first == span.last else (InputRef(name=span.last, digest=digest_of(span.last)),)


@dataclass(frozen=True)
class EarlierRecords:
    """The newest records of a folder, by what they are about."""

    folder: StageDir

    def about(self, piece: SampleSlice) -> RecordsAbout:
        """Return the records about a slice's files; nothing is listed before somebody looks at them."""
        return RecordsAbout(self, Span.of_piece(piece), is_alone=piece.settings["kind"] in ALONE)

    def find(self, span: Span, *, is_alone: bool) -> list[Record]:
        """Return the records that overlap; where a file makes a unit by itself (`is_alone`) its name tells enough,
        unless many folders have one of that name."""
        if is_alone and len(records := self.by_shard.get(safe_name(span.first), [])) <= _FEW:
            return records
        spans, firsts, lasts = self._spans
        near = spans[bisect_left(lasts, span.first) : bisect_right(firsts, span.last)]
        return sorted(record for other, record in near if span.overlaps(other))

    @cached_property
    def by_shard(self) -> dict[str, list[Record]]:
        """Return the newest records by the name of the first file, as it stands in the names of units."""
        names = self.folder.record_table().group_by("unit").agg(pl.col("attempt").max()).sort("unit")
        shards = names.with_columns(shard=pl.col("unit").str.extract(_STEM)).drop_nulls("shard")
        found: dict[str, list[Record]] = defaultdict(list)
        for unit, attempt, shard in shards.iter_rows():
            found[shard].append((unit, attempt))
        return found

    @cached_property
    def _spans(self) -> tuple[list[tuple[Span, Record]], list[str], list[str]]:
        """Return the records by their first files, these first files, and the furthest last file up to each."""
        ledger, _ = read_ledger(self.folder)
        found = [(Span.of_record(commit), (commit.unit, commit.attempt)) for commit in ledger.in_order_of_name()]
        found.sort(key=lambda one: one[0].first)
        return found, [span.first for span, _ in found], list(accumulate((span.last for span, _ in found), max))


class RecordsAbout(Sequence[Record]):
    """Records that are looked up when somebody looks at them, or sends them to another process."""

    def __init__(self, earlier: EarlierRecords, span: Span, *, is_alone: bool) -> None:
        self._earlier, self._span, self._is_alone = earlier, span, is_alone

    @cached_property
    def _records(self) -> tuple[Record, ...]:
        return tuple(self._earlier.find(self._span, is_alone=self._is_alone))

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, place: int | slice) -> Record | tuple[Record, ...]:
        return self._records[place]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __reduce__(self) -> tuple[Any, ...]:
        return (tuple, (self._records,))
