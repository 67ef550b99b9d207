"""Pull what comes next while a model works: in a thread of its own, in order, a bounded number of items ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
_END = object()


class Ahead(Generic[Item]):
    """An iterator over `source` that is `depth` items ahead of its reader; what `source` raises comes at its place.

    Only one thread ever advances `source`, and none does any more when the block is left.
    """

    def __init__(self, source: Iterable[Item], depth: int) -> None:
        self._source, self._depth = iter(source), depth
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._coming: deque[Future[Any]] = deque()

    def __enter__(self) -> Ahead[Item]:
        for _ in range(self._depth):
            self._pull()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        item = self._coming.popleft().result()
        self._pull()
        if item is _END:
            raise StopIteration
        return item  # type: ignore[no-any-return]

    def is_ready(self) -> bool:
        """Tell whether the next item (or the end) is there, so that reading it will not wait."""
        return self._coming[0].done()

    def _pull(self) -> None:
        self._coming.append(self._pool.submit(next, self._source, _END))
