"""Several video decoders side by side: clips of a slice go to threads in short runs of neighbours.

One decoder goes forward through a run; the next run of that film may go to another decoder, which passes over what lies
between without decoding it. So a film of many clips is decoded by all, and what waits to be taken stays bounded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

from tokenmill.pipelines.decode_video import VideoDecoder

Row = Mapping[str, Any]


class DecoderPool:
    """Video decoders for threads: whoever asks gets one alone, if it can be the one that has the film open."""

    def __init__(self, make: Callable[[], VideoDecoder]) -> None:
        self._make = make
        self._free: list[tuple[str, VideoDecoder]] = []
        self._lock = threading.Lock()
        self._is_closed = False

    @contextmanager
    def taken(self, path: Path) -> Iterator[VideoDecoder]:
        """Lend a decoder to go through `path`."""
        with self._lock:
            self._free.sort(key=lambda waiting: waiting[0] == str(path))
            decoder = self._free.pop()[1] if self._free else self._make()
        try:
            yield decoder
        finally:
            with self._lock:
                if self._is_closed:  # a generator that was given up leaves threads at work
                    decoder.close()
                else:
                    self._free.append((str(path), decoder))

    def close(self) -> None:
        """End the child processes: those at work, and those that late threads still start, when they are done."""
        with self._lock:
            self._is_closed = True
            for _, decoder in self._free:
                decoder.close()
            self._free.clear()


class FilmCopy:
    """One local copy of a film for several users: made when the first enters, gone when the last has left."""

    def __init__(self, copy: AbstractContextManager[Path], users: int) -> None:
        self._copy, self._users = copy, users
        self._path: Path | None = None
        self._error: Exception | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Path:
        with self._lock:
            if self._error is not None:  # whoever comes first: all fail of the same, and nobody tries again
                raise self._error
            if self._path is None:
                try:
                    self._path = self._copy.__enter__()
                except Exception as error:
                    self._error = error
                    raise
            return self._path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._copy.__exit__(None, None, None)


@dataclass(frozen=True, slots=True)
class ClipRun:
    """Neighbouring clips of one film."""

    copy: FilmCopy
    rows: Sequence[Row]


def clip_runs(
    rows: Iterator[Row], copy: Callable[[str], AbstractContextManager[Path]], run_rows: int
) -> Iterator[ClipRun]:
    """Cut rows, those of a film together, into runs of at most `run_rows`."""
    for path, group in groupby(rows, key=lambda row: str(row["path"])):
        clips = list(group)
        starts = range(0, len(clips), run_rows)
        film = FilmCopy(copy(path), users=len(starts))
        yield from (ClipRun(film, clips[start : start + run_rows]) for start in starts)
