"""What a store holds and what travels to and from it: the small types that every backend and its callers share.

Traffic is counted by process, not by store, so that a worker can tell what one unit cost by subtracting two readings; a
count is one lock and two additions, under a microsecond beside a request of a millisecond.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, TypeAlias

Fetch: TypeAlias = Callable[[int, int], bytes]
TEMPORARY = ".part-"  # how the names of unpublished local files begin; no listing shows them


@dataclass(frozen=True, slots=True)
class Stored:
    """One object under a store's root: its path relative to the root, its size in bytes, when it was written."""

    path: str
    size: int
    modified_s: float | None = None  # seconds since 1970, where the store tells


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Something begun and never published: a local temporary file, or a multipart upload (`id` is the store's)."""

    path: str
    id: str
    started_s: float | None  # seconds since 1970, where the store tells
    bytes: int | None  # None where the store does not tell


@dataclass(frozen=True, slots=True)
class Traffic:
    """What this process has exchanged with all its stores; the difference of two is what happened in between."""

    requests: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    retries: int = 0

    def __sub__(self, earlier: Traffic) -> Traffic:
        return Traffic(
            self.requests - earlier.requests,
            self.bytes_read - earlier.bytes_read,
            self.bytes_written - earlier.bytes_written,
            self.retries - earlier.retries,
        )


_lock = threading.Lock()
_counts = [0, 0, 0, 0]  # as the fields of Traffic


def traffic() -> Traffic:
    """Return what this process has exchanged with all its stores so far."""
    with _lock:
        return Traffic(*_counts)


def count(requests: int = 1, *, read: int = 0, written: int = 0, retries: int = 0) -> None:
    """Add to the traffic of this process."""
    with _lock:
        _counts[0] += requests
        _counts[1] += read
        _counts[2] += written
        _counts[3] += retries


class Backend(Protocol):
    """What a kind of storage does; paths are relative to the root, a fault is an exception of its library."""

    def read(self, path: str) -> bytes: ...
    def read_range(self, path: str, start: int, length: int) -> bytes: ...
    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]: ...
    def open(self, path: str, fetch: Fetch) -> AbstractContextManager[IO[bytes]]:
        """Open a file; a remote one reads through `fetch(start, length)`, whose faults are explained."""
        ...

    def download(self, path: str, target: Path) -> None: ...
    def files(self, prefix: str) -> Iterator[Stored]: ...
    def names(self, prefix: str, after: str) -> Iterator[str]: ...
    def folders(self, prefix: str) -> list[str]: ...
    def size(self, path: str) -> int | None:
        """Return an object's size in bytes, or None where none of that name is."""
        ...

    def delete(self, paths: Sequence[str], *, missing_ok: bool) -> None: ...
    def put(self, path: str, data: bytes) -> None: ...
    def create(self, path: str, data: bytes) -> bool: ...
    def upload(self, path: str, staged: Path) -> None: ...
    def staging(self, folder: str) -> AbstractContextManager[Path]: ...
    def unfinished(self) -> list[Unfinished]: ...
    def abandon(self, unfinished: Unfinished) -> None: ...
