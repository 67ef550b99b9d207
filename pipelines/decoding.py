"""From a slice's rows to pixels and text: one decode for everybody who wants to look at a sample.

A sample that cannot be decoded comes back as its SampleError, in its place. More than `failure_budget` failures in a
row end the run: a wrong path or a broken decoder is not ten million bad samples.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import RunError, SampleError, StorageError, TokenmillError
from tokenmill.filters.clip import Clip, Sampling
from tokenmill.filters.clip_frames import FrameChoice
from tokenmill.filters.footage import Footage
from tokenmill.filters.picture import BASE, Kind, Picture
from tokenmill.manifests.identity import digest_of, sha256_hex
from tokenmill.pipelines.clip_pool import ClipRun, DecoderPool, clip_runs
from tokenmill.pipelines.decode_image import EncodedImage, decode_image, open_image
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.fault_message import fault_message
from tokenmill.pipelines.reading import Place, ordered_map, read_places
from tokenmill.pipelines.samples import SampleSlice, clip_seconds
from tokenmill.pipelines.sources.files import VideoFolder
from tokenmill.pipelines.sources.source import Source, local_mark, open_source

S = TypeVar("S")
T = TypeVar("T")
Pixels = NDArray[np.uint8]
_RUN_ROWS = 4  # clips of a film that one thread takes: (threads + 1) runs of results wait at most
_GLIMPSE_PX = 128
Found = tuple[bytes, str, str]  # what was read, its extension, the sha256 of the sample in the index


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """What a sample may cost.

    `max_pixels` decides which samples fail, a decoding device what their pixels are: both are part of every stage that
    decodes.
    """

    max_pixels: int = 100_000_000
    clip_timeout_s: float = 60.0
    clip_timeout_per_second_s: float = 4.0
    video_memory_bytes: int = 4 << 30
    video_hwaccel: str | None = None
    threads: int = 2
    failure_budget: int = 100

    @property
    def settings(self) -> dict[str, Any]:
        device = {"video_hwaccel": self.video_hwaccel} if self.video_hwaccel else {}
        return {"max_pixels": self.max_pixels, **device}

    def video_decoder(self) -> VideoDecoder:
        """Return a decoder that keeps to these limits."""
        return VideoDecoder(
            timeout_s=self.clip_timeout_s,
            per_second_s=self.clip_timeout_per_second_s,
            max_pixels=self.max_pixels,
            max_memory_bytes=self.video_memory_bytes,
            hwaccel=self.video_hwaccel,
        )


class SampleReader:
    """Reads one source's samples; keeps the video decoders' child processes between units."""

    def __init__(self, name: str, settings: Mapping[str, Any], limits: DecodeLimits) -> None:
        import cv2

        cv2.setNumThreads(1)  # the pool is what uses the cores
        self.source: Source = open_source(name, settings)
        self.limits = limits
        self.name = name
        self.decoders = DecoderPool(limits.video_decoder)
        self.read_s = 0.0  # spent waiting for bytes so far

    def close(self) -> None:
        self.decoders.close()

    def texts(self, piece: SampleSlice, rows: pl.DataFrame) -> Generator[str | SampleError]:
        """Yield the text of every row; ingest has read it as UTF-8 already."""

        def read(found: Found) -> str | SampleError:
            return _attempt(lambda: self._payload(found).decode("utf-8"))

        return self._counted(map(read, self._found(piece, rows)))

    def images(self, piece: SampleSlice, rows: pl.DataFrame) -> Generator[Pixels | SampleError]:
        """Yield the picture (HWC uint8 RGB) of every row, decoded ahead in threads."""
        return self.samples(piece, rows, lambda data: decode_image(data, max_pixels=self.limits.max_pixels))

    def samples(
        self, piece: SampleSlice, rows: pl.DataFrame, make: Callable[[bytes], T], known: Mapping[str, T] | None = None
    ) -> Generator[T | SampleError]:
        """Apply `make(bytes)` to every sample of a slice, in the decoding threads.

        What comes as SampleError is `make`'s, or its bytes are not those that were indexed. `known` samples (by key)
        come in their places as they are and are not read.
        """
        known = known or {}

        def made(found: Found) -> T | SampleError:
            return _attempt(lambda: make(self._payload(found)))

        unseen = rows.filter(~pl.col("key").is_in(list(known))) if known else rows
        new = self.ahead(made, self._found(piece, unseen))
        return self._counted(known[key] if key in known else next(new) for key in rows["key"])

    def pictures(
        self, piece: SampleSlice, rows: pl.DataFrame, look: Callable[[Picture, float], T]
    ) -> Generator[T | SampleError]:
        """Apply `look(picture, seconds it took to decode)` to every picture of a slice, in the decoding threads.

        What comes as SampleError could not be opened, or not be decoded as far as `BASE`.
        """

        def seen(item: tuple[Found, str | None]) -> T | SampleError:
            mark = time.perf_counter()
            picture = _attempt(self._picture, *item)
            return picture if isinstance(picture, SampleError) else look(picture, time.perf_counter() - mark)

        found = zip(self._found(piece, rows), rows["caption"], strict=True)
        yield from self._counted(self.ahead(seen, found))

    def footage(
        self, rows: pl.DataFrame, sampling: Sampling, look: Callable[[Footage, float], T]
    ) -> Generator[T | SampleError]:
        """Apply `look(footage, seconds it took to decode)` to every clip, where clips are decoded.

        What comes as SampleError could not be decoded.
        """

        def seen(decoder: VideoDecoder, path: Path, row: dict[str, Any]) -> T | _Raised:
            mark = time.perf_counter()
            footage = self._footage(decoder, path, row, sampling)
            try:
                return look(footage, time.perf_counter() - mark)
            except Exception as error:  # a scorer's fault is no bad sample's
                return _Raised(error)

        for one in self.clips(rows, seen):
            if isinstance(one, _Raised):
                raise one.error
            yield one

    def _footage(self, decoder: VideoDecoder, path: Path, row: Mapping[str, Any], sampling: Sampling) -> Footage:
        start, end, side = row["start_frame"], row["end_frame"], sampling.short_side_px
        sampled = decoder.sample(path, start, end, sampling.fps, short_side_px=side)
        clip = Clip(
            frames=sampled.frames,
            seconds=sampled.seconds,
            fps=sampling.fps,
            duration_s=_seconds(row),
            width_px=row["width_px"],
            height_px=row["height_px"],
            has_audio=bool(row.get("has_audio")),
            sha256=row["sha256"],
            caption=row["caption"],
        )
        return Footage.of(clip)

    def ahead(self, function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """Apply a function in the decoding threads, in order."""
        threads = self.limits.threads
        return ordered_map(function, items, threads=threads, window=4 * threads)

    def _picture(self, found: Found, caption: str | None) -> Picture:
        data = self._payload(found)
        image = open_image(data, max_pixels=self.limits.max_pixels)
        picture = Picture(_Views(image), *image.size, data=data, sha256=found[2], caption=caption)
        picture.view(BASE)
        return picture

    def clips(
        self, rows: pl.DataFrame, decode: Callable[[VideoDecoder, Path, dict[str, Any]], T]
    ) -> Generator[T | SampleError]:
        """Apply `decode(decoder, local path, row)` to every clip or video, in the decoding threads.

        Results come in the order of the rows, which are cheapest sorted by film and frame. A remote file is fetched
        once for neighbouring clips. Raises StorageError for a film that is not there any more.
        """
        threads = self.limits.threads

        def same(mark: str | None, decoder: VideoDecoder, local: Path, row: dict[str, Any]) -> T:
            _check_film(mark, row)
            return decode(decoder, local, row)

        def each(run: ClipRun) -> list[T | SampleError]:
            with run.copy as local, self.decoders.taken(local) as decoder:
                try:
                    mark = local_mark(local) if isinstance(self.source, VideoFolder) else None
                    return [_attempt(same, mark, decoder, local, row) for row in run.rows]
                except (FileNotFoundError, PermissionError) as error:
                    if os.access(local, os.R_OK):  # another file's fault
                        raise
                    place = f"{self.source.store.url}/{run.rows[0]['path']}"
                    raise StorageError(f"{place}: cannot be read: {type(error).__name__}") from error

        named = rows.iter_rows(named=True)
        runs = clip_runs(named, self.source.store.local_copy, 1 if threads == 1 else _RUN_ROWS)
        return self._counted(chain.from_iterable(ordered_map(each, runs, threads=threads, window=threads + 1)))

    def glimpses(self, decoder: VideoDecoder, path: Path, row: Mapping[str, Any]) -> Pixels:
        """Return three frames of a clip, evenly spread and small, THWC; fewer of a clip that has fewer."""
        numbers = FrameChoice(frames=3).numbers(row["end_frame"] - row["start_frame"])
        return decoder.frames(path, [row["start_frame"] + number for number in numbers], short_side_px=_GLIMPSE_PX)

    def _found(self, piece: SampleSlice, rows: pl.DataFrame) -> Iterator[Found]:
        return zip(self._timed(self._bytes(piece, rows)), rows["extension"], rows["sha256"], strict=True)

    def _timed(self, data: Iterator[bytes]) -> Iterator[bytes]:
        while True:
            mark = time.perf_counter()
            one = next(data, None)
            self.read_s += time.perf_counter() - mark
            if one is None:
                return
            yield one

    def _payload(self, found: Found) -> bytes:
        """Return a sample's own bytes; raises SampleError if they are not those that were indexed."""
        data, extension, sha256 = found
        try:
            payload = self.source.payload(data, extension)
        except (ValueError, KeyError, TypeError) as error:
            raise SampleError("changed_since_ingest", "the indexed bytes are another sample's now") from error
        if sha256_hex(payload) != sha256:
            raise SampleError("changed_since_ingest", "the bytes differ from the index's digest; run ingest again")
        return payload

    def _bytes(self, piece: SampleSlice, rows: pl.DataFrame) -> Iterator[bytes]:
        archive = piece.folder.at(piece.commit.data.name) if piece.commit.file("data") else None
        for packed, group in _runs(rows, "packed"):
            store = piece.folder.store if packed else self.source.store
            places = [
                Place(archive or "" if packed else path, offset, length)
                for path, offset, length in group.select("path", "offset", "length").iter_rows()
            ]
            yield from read_places(store, places)

    def _counted(self, samples: Iterable[T | SampleError]) -> Generator[T | SampleError]:
        failures = 0  # of this unit: whether a run stops must not hang on which units a worker gets
        for sample in samples:
            failures = failures + 1 if isinstance(sample, SampleError) else 0
            if failures > self.limits.failure_budget:
                raise RunError(f"{self.name}: {failures} samples failed in a row, the last with: {sample}")
            yield sample


@dataclass(frozen=True, slots=True)
class _Raised:
    """What somebody who looked at a clip raised."""

    error: Exception


def _check_film(mark: str | None, row: Mapping[str, Any]) -> None:
    """Raise SampleError where a film is another than the one that was indexed, as far as its mark tells."""
    if mark is None or row.get("sha256") is None:
        return
    found = digest_of([mark, row["start_frame"], row["end_frame"]]) if "start_frame" in row else mark
    if found != row["sha256"]:
        raise SampleError("changed_since_ingest", "the film differs from the index's digest; run ingest again")


def _seconds(row: Mapping[str, Any]) -> float:
    """Return how long a clip lasts."""
    start, end = clip_seconds(row)
    return float(end - start)


@dataclass(frozen=True, slots=True)
class _Views:
    """Decodes views; whatever hostile bytes make the decoder raise is a SampleError."""

    image: EncodedImage

    def __call__(self, kind: Kind, scale: int) -> Pixels:
        pixels = _attempt(self.image, kind, scale)
        if isinstance(pixels, SampleError):
            raise pixels
        return pixels

    def release(self) -> None:
        self.image.release()


def _attempt(function: Callable[..., T], *arguments: Any, **options: Any) -> T | SampleError:
    try:
        return function(*arguments, **options)
    except SampleError as error:
        return error
    except (TokenmillError, ImportError, MemoryError, OSError):
        raise
    except Exception as error:  # hostile bytes make decoders raise anything; many in a row end the run
        return SampleError("decoder_error", fault_message(error))


def _runs(rows: pl.DataFrame, column: str) -> Iterator[tuple[Any, pl.DataFrame]]:
    """Yield stretches of rows with one value in a column, in order."""
    start = 0
    for value, group in groupby(rows[column]):
        length = len(list(group))
        yield value, rows.slice(start, length)
        start += length


def failure_values(stage: str, error: SampleError | None) -> tuple[str | None, str | None, str | None, bool | None]:
    """Return the four failure columns of a row."""
    if error is None:
        return (None, None, None, None)
    return (stage, error.reason, error.message, error.transient)
