"""Work on films is divided by duration: a long film is many inputs, thousands of short ones are few units.

A range is an equal share of a film's frames, near `range_seconds` of it; ranges are put together, in the order of the
source, into units of up to `unit_seconds`. How long a film is, its header says (the index's `seconds`); one that does
not say is taken for `ESTIMATED_BYTES_PER_S`. Being wrong costs balance alone: clips do not hang on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import polars as pl

from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.records import InputRef
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.pipelines.units import group_files

ESTIMATED_BYTES_PER_S = 500_000  # 4 Mbit/s: 720p as it comes from the web
_LEAST_BYTES_PER_S = 500  # a header that claims years must not become millions of inputs
_LEAST_S = 1.0  # what opening a film weighs
_MEAN_FILMS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmRange:
    """Share `number` of `shares` equal shares of a film's frames; `seconds` of the whole, announced or estimated."""

    path: str
    digest: str
    seconds: float
    caption: str | None
    metadata: str
    number: int = 0
    shares: int = 1

    @property
    def reference(self) -> InputRef:
        digest = digest_of([self.digest, self.caption, self.metadata])
        if self.shares == 1:
            return InputRef(name=self.path, digest=digest)
        share = f"shares of {self.shares}"
        return InputRef(name=self.path, digest=digest, start=self.number, end=self.number + 1, unit_of_range=share)

    @property
    def key(self) -> str:
        return self.path if self.shares == 1 else f"{self.path}#{self.number}/{self.shares}"

    @property
    def weight_s(self) -> float:
        return max(self.seconds / self.shares, _LEAST_S)

    def frames(self, num_frames: int) -> tuple[int, int]:
        """Return the first and the end frame of the share."""
        return num_frames * self.number // self.shares, num_frames * (self.number + 1) // self.shares


@dataclass(frozen=True, slots=True)
class _Weighed:
    """A range as `group_files` sees it: its size in milliseconds."""

    path: str
    size: int
    part: FilmRange


def film_ranges(ingest: Snapshot, range_seconds: float) -> list[FilmRange]:
    """Return the ranges of all films of a source, in order."""
    return [part for film in _films(ingest) for part in _ranges(film, range_seconds)]


def grouped_ranges(ranges: Sequence[FilmRange], unit_seconds: float) -> list[list[FilmRange]]:
    """Put ranges together into units of at most `unit_seconds`; a new film changes only the units next to it."""
    weighed = [_Weighed(part.key, round(part.weight_s * 1000), part) for part in ranges]
    groups = group_files(weighed, max_bytes=round(unit_seconds * 1000), mean_files=_MEAN_FILMS)
    return [[one.part for one in group] for group in groups]


def _films(ingest: Snapshot) -> Iterator[FilmRange]:
    """Yield the films that could be indexed; an index without durations is of an older version."""
    for commit in ingest.commits:
        rows = ingest.folder.read_rows(commit).filter(pl.col("fail_reason").is_null())
        for row in rows.iter_rows(named=True):
            yield FilmRange(
                path=row["path"],
                digest=row["sha256"],
                seconds=_seconds(row.get("seconds"), row["length"]),
                caption=row["caption"],
                metadata=row["metadata"],
            )


def _seconds(announced: float | None, size: int) -> float:
    if announced is None:
        return size / ESTIMATED_BYTES_PER_S
    return min(announced, size / _LEAST_BYTES_PER_S)


def _ranges(film: FilmRange, range_seconds: float) -> list[FilmRange]:
    shares = max(1, round(film.seconds / range_seconds))  # an empty file is an input too: it fails with its reason
    return [replace(film, number=number, shares=shares) for number in range(shares)]
