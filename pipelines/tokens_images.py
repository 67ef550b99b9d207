"""Pictures as codes: decoded and resized in the decoding threads, gathered by size, encoded while others are decoded.

Padding pictures of mixed sizes would change codes (EMU3.md §2), so only equal sizes share a call. Pictures that wait
for others of their size have a budget in bytes; past it the largest bucket goes as it is, which changes no code
(`tokens_model`) and costs the model a batch that is not full.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
import polars as pl

from tokenmill.errors import SampleError
from tokenmill.pipelines.decode_image import decode_image
from tokenmill.pipelines.decoding import SampleReader
from tokenmill.pipelines.samples import SampleSlice
from tokenmill.pipelines.tokens_before import Coded
from tokenmill.pipelines.tokens_clip import TokenArea
from tokenmill.pipelines.tokens_model import Codes, Pixels, SharedVision
from tokenmill.tokenize.preprocess import resize

D = TypeVar("D")
Sized = Pixels | Coded | SampleError  # a picture as it is encoded, its codes where they exist, or why there are none
_WAITING_BYTES = 512 * 2**20


@dataclass(slots=True)
class Waiting(Generic[D]):
    """A picture on its way: whose it is, and what became of it."""

    destination: D
    pixels: Pixels | None = None
    found: Codes | SampleError | None = None


@dataclass
class Buckets(Generic[D]):
    """Pictures that wait for a full batch of their size, `most_bytes` in all; a function of their order alone."""

    batch_size: int
    most_bytes: int = _WAITING_BYTES
    waiting: dict[tuple[int, ...], list[Waiting[D]]] = field(default_factory=dict)
    bytes: int = 0

    def add(self, one: Waiting[D]) -> list[list[Waiting[D]]]:
        """Put a picture in its bucket; returns buckets that are full, and the largest ones past the budget."""
        assert one.pixels is not None
        shape = one.pixels.shape
        bucket = self.waiting.setdefault(shape, [])
        bucket.append(one)
        self.bytes += one.pixels.nbytes
        taken = [self._take(shape)] if len(bucket) == self.batch_size else []
        while self.bytes > self.most_bytes:
            taken.append(self._take(max(self.waiting, key=self._size)))
        return taken

    def rest(self) -> Iterator[list[Waiting[D]]]:
        """Yield what is left, smallest size first."""
        for shape in sorted(self.waiting):
            yield self._take(shape)

    def _size(self, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        return len(self.waiting[shape]) * int(np.prod(shape)), shape

    def _take(self, shape: tuple[int, ...]) -> list[Waiting[D]]:
        bucket = self.waiting.pop(shape)
        self.bytes -= len(bucket) * int(np.prod(shape))
        return bucket


@dataclass(frozen=True, slots=True)
class _Refused:
    """A picture that the recipe does not want: any number of them in a row says nothing about the source."""

    error: SampleError


class ImageEncoder:
    """Decodes, resizes and encodes pictures; `seconds` counts what decoding and resizing took, summed over threads."""

    def __init__(self, shared: SharedVision, area: TokenArea, *, max_pixels: int) -> None:
        self._shared, self._area, self._max_pixels = shared, area, max_pixels
        self._lock = Lock()
        self.seconds: dict[str, float] = defaultdict(float)

    def read(
        self, reader: SampleReader, piece: SampleSlice, rows: pl.DataFrame, known: Mapping[str, Coded] | None = None
    ) -> Iterator[Sized]:
        """Yield the picture of every row, decoded and resized ahead in threads, or its `known` codes."""

        def made(data: bytes) -> Pixels | Coded | _Refused:
            image = self._decoded(data)
            try:
                return self._resized(image)
            except SampleError as error:
                return _Refused(error)

        seen: Mapping[str, Pixels | Coded | _Refused] = dict(known or {})
        for one in reader.samples(piece, rows, made, seen):
            yield one.error if isinstance(one, _Refused) else one

    def sized(self, data: bytes) -> Pixels:
        """Return a picture as it is encoded, for any thread; raises SampleError for one that is broken or refused."""
        return self._resized(self._decoded(data))

    def encoded(self, pictures: Iterable[tuple[D, Sized]]) -> Iterator[tuple[D, Codes | SampleError]]:
        """Yield the codes (h, w) of pictures, in their order and as early as that allows; errors and known codes pass.

        `pictures` says whose each one is (a sample, a number in a document); more is asked of it while the model works.
        """
        buckets: Buckets[D] = Buckets(self._shared.at_once)
        order: deque[Waiting[D]] = deque()
        flight: _Flight[D] = _Flight(self._shared)
        try:
            for destination, pixels in pictures:
                one = Waiting(destination)
                order.append(one)
                if isinstance(pixels, SampleError):
                    one.found = pixels
                elif isinstance(pixels, Coded):
                    one.found = pixels.codes[0]
                else:
                    one.pixels = pixels
                    flight.start(buckets.add(one))
                flight.land()
                yield from _complete(order)
            for batch in buckets.rest():
                flight.start([batch])
                yield from _complete(order)
            flight.land(all_of_them=True)
            yield from _complete(order)
        finally:
            flight.give_up()

    def _decoded(self, data: bytes) -> Pixels:
        started = time.perf_counter()
        try:
            return decode_image(data, max_pixels=self._max_pixels)
        finally:
            self._count("decode", started)

    def _resized(self, image: Pixels) -> Pixels:
        started = time.perf_counter()
        try:
            return resize(image, self._area.of(image.shape[0], image.shape[1]))
        finally:
            self._count("resize", started)

    def _count(self, phase: str, started: float) -> None:
        with self._lock:
            self.seconds[phase] += time.perf_counter() - started


def _complete(order: deque[Waiting[D]]) -> Iterator[tuple[D, Codes | SampleError]]:
    while order and (found := order[0].found) is not None:
        yield order.popleft().destination, found


class _Flight(Generic[D]):
    """Batches that are with the model: one a thread, and one that waits for each."""

    def __init__(self, shared: SharedVision) -> None:
        self._shared = shared
        self._calls: deque[tuple[list[Waiting[D]], Future[list[Codes]]]] = deque()

    def start(self, batches: Iterable[list[Waiting[D]]]) -> None:
        for batch in batches:
            while len(self._calls) >= 2 * self._shared.calls:
                self._land_one()
            pixels = [one.pixels for one in batch if one.pixels is not None]
            self._calls.append((batch, self._shared.images(pixels)))
            for one in batch:
                one.pixels = None

    def land(self, *, all_of_them: bool = False) -> None:
        """Hand out the codes of calls that have ended."""
        while self._calls and (all_of_them or self._calls[0][1].done()):
            self._land_one()

    def give_up(self) -> None:
        for _, call in self._calls:
            call.cancel()

    def _land_one(self) -> None:
        batch, call = self._calls.popleft()
        for one, codes in zip(batch, call.result(), strict=True):
            one.found = codes
