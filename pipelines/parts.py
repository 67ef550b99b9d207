"""Mapping a function over the parts of one large decision: in this process, or as Ray Data jobs on a stage's pool.

Unlike units, parts leave nothing on disk: their results come back, in order, to whoever decides. A part that is lost
with its worker is handed out again; functions are pure, so where and how often they ran does not show.
"""

from __future__ import annotations

import logging
import pickle
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol, TypeVar

from tokenmill.errors import RunError
from tokenmill.pipelines.execution import FATAL, told
from tokenmill.pipelines.ray_cluster import RayPool, start_ray

log = logging.getLogger(__name__)
P = TypeVar("P")
R = TypeVar("R")
_ROLE = "parts"
_WAVE_PARTS = 1024
_WAVE_BYTES = 96 * 2**20  # of the parts that wait in Ray's store at once, which may have 256 MiB in all


class MapInOrder(Protocol):
    """Applies a picklable function to some parts; results come in the order of the parts."""

    def __call__(self, function: Callable[[P], R], parts: Iterable[P]) -> Iterator[R]: ...


def map_here(function: Callable[[P], R], parts: Iterable[P]) -> Iterator[R]:
    """Apply a function to one part after the other in this process."""
    return map(function, parts)


@dataclass(frozen=True, kw_only=True)
class RayParts:
    """Applies functions on a pool of Ray actors, a part a call, `tries` times where a worker dies or a store fails."""

    pool: RayPool
    tries: int = 3
    start_timeout_s: float = 600.0

    def __call__(self, function: Callable[[P], R], parts: Iterable[P]) -> Iterator[R]:
        for wave in _waves(parts):
            if len(wave) == 1:  # a pool takes longer to start
                yield function(pickle.loads(wave[0]))
                continue
            yield from self._wave(function, wave)

    def _wave(self, function: Callable[[P], R], wave: Sequence[bytes]) -> Iterator[R]:
        """Yield the results of some packed parts in their order, as soon as those before them are there.

        Raises:
            RunError: a part failed after all tries, or with what no other try can mend, or no worker began.
        """
        start_ray(self.pool)
        left, found, problem = dict(enumerate(wave)), {}, "its worker died"
        following = count()
        wanted = next(following)
        for _ in range(self.tries):
            for row in self._pass(function, left):
                result, error, fatal = pickle.loads(row["result"])
                if fatal:
                    raise RunError(error)
                if error:
                    problem = error
                    log.warning("part %d: %s", row["index"], error)
                    continue
                del left[row["index"]]
                found[row["index"]] = result
                while wanted in found:
                    yield found.pop(wanted)
                    wanted = next(following)
            if not left:
                return
        raise RunError(f"{len(left)} parts failed after {self.tries} tries: {problem}")

    def _pass(self, function: Callable[[Any], Any], parts: dict[int, bytes]) -> Iterator[dict[str, Any]]:
        """Hand some parts out once; what does not come back was lost."""
        from tokenmill.pipelines.execution_ray import (
            ENDED,
            in_background,
            last_line,
            mapped,
            nobody_began,
            one_block_each,
        )
        from tokenmill.pipelines.ray_desk import Desk

        desk = Desk()
        rows = [{"index": index, "part": part} for index, part in parts.items()]
        arguments = (pickle.dumps(function), desk.handle)
        found = in_background(mapped(one_block_each(rows), PartWorker, arguments, self.pool, len(rows), queued=2))
        waits_until = time.monotonic() + self.start_timeout_s
        while True:
            try:
                row = found.get(timeout=1.0)  # so that signals are heard
            except queue.Empty:
                if time.monotonic() > waits_until and not desk.state().begun_roles:
                    raise RunError(nobody_began(_ROLE, self.pool, self.start_timeout_s)) from None
                continue
            if row is ENDED:
                return
            if isinstance(row, BaseException):
                raise RunError(f"Ray: {last_line(row)}") from row
            yield row


def _waves(parts: Iterable[Any]) -> Iterator[list[bytes]]:
    wave: list[bytes] = []
    size = 0
    for part in parts:
        packed = pickle.dumps(part)
        if wave and (size + len(packed) > _WAVE_BYTES or len(wave) >= _WAVE_PARTS):
            yield wave
            wave, size = [], 0
        wave.append(packed)
        size += len(packed)
    if wave:
        yield wave


class PartWorker:
    """The actor: unpacks the function once, then applies it to a part a call."""

    def __init__(self, function: bytes, desk: Any) -> None:
        self._packed, self._desk = function, desk
        self._function: Callable[[Any], Any] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        result, error, fatal = None, "", False
        try:
            if self._function is None:
                self._desk.arrive.remote(_ROLE)
                self._function = pickle.loads(self._packed)
            result = self._function(pickle.loads(batch["part"][0]))
        except Exception as problem:
            error, fatal = told(problem), isinstance(problem, FATAL)
        return {"index": [int(batch["index"][0])], "result": [pickle.dumps((result, error, fatal))]}
