"""How long the films of a source are, told at ingest: work on them is divided by duration.

MP4 and MOV tell by their boxes, in this process, by ranged reads. All else is opened by FFmpeg in a child process; of
a remote film the child gets a sparse copy with the first and the last 256 KiB alone. Whoever does not say how long it
is has no duration here, and that is no fault: the split stage decodes it and tells what is wrong.
"""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

from tokenmill.errors import SampleError
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.line_child import LineChild
from tokenmill.pipelines.sources.film_header import mp4_seconds

_CHILD = "tokenmill.pipelines.sources.film_header_child"
_CHILDREN = 2
_END_BYTES = 256 * 2**10
_LONGEST_S = 366 * 86_400.0


class FilmSeconds:
    """Asks films how long they are; for many threads. The children end with it."""

    def __init__(self, store: Store, *, timeout_s: float = 20.0) -> None:
        self._store = store
        self._children: SimpleQueue[LineChild] = SimpleQueue()
        children = [LineChild(_CHILD, timeout_s=timeout_s) for _ in range(_CHILDREN)]
        for child in children:
            self._children.put(child)
        self.close = weakref.finalize(self, _close, children)

    def __call__(self, path: str, size: int) -> float | None:
        """Return a film's announced duration in seconds, to the millisecond; None where it has none."""
        found = mp4_seconds(lambda start, length: self._store.read_range(path, start, length), size)
        if found is None and size:
            found = self._asked(path, size)
        return round(found, 3) if found is not None and 0 < found < _LONGEST_S else None

    def _asked(self, path: str, size: int) -> float | None:
        with _ends(self._store, path, size) as local:
            child = self._children.get()
            try:
                answer = child.ask({"path": str(local)})
            except SampleError:
                return None
            finally:
                self._children.put(child)
        seconds = answer["seconds"]
        return None if seconds is None else float(seconds)


def _close(children: list[LineChild]) -> None:
    for child in children:
        child.close()


@contextlib.contextmanager
def _ends(store: Store, path: str, size: int) -> Iterator[Path]:
    """Give a local path: the file itself, or a sparse one that has the remote one's size, head and tail."""
    here = store.local_path(path)
    if here is not None:
        yield here
        return
    head = min(size, _END_BYTES)
    tail = min(size - head, _END_BYTES)
    with tempfile.TemporaryDirectory(prefix="tokenmill-") as folder:
        target = Path(folder) / path.rsplit("/", 1)[-1]
        first, last = store.read_ranges(path, [(0, head), (size - tail, tail)])
        with target.open("wb") as file:
            file.write(first)
            file.seek(size - tail)
            file.write(last)
            file.truncate(size)
        yield target
