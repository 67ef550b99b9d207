"""The samples of a list: their bytes from storage, their pixels, and crops of them.

Pictures lie in memory at every size that was drawn, up to a budget, so a small set is decoded once (about 3 MB a
picture); beyond it every draw decodes. A sample's pixels hang on its bytes alone, never on what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from tokenmill.errors import SampleError
from tokenmill.manifests.storage import Store, open_store
from tokenmill.train.vision_clips import ClipReader
from tokenmill.train.vision_pictures import (
    PixelCache,
    Pixels,
    decode_picture,
    decoded_short_side,
    open_picture,
    short_sides,
    shrunk,
)

__all__ = ["Pixels", "Place", "Samples"]
_PICTURES_COLUMNS = ("packed", "source", "path", "offset", "length")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A store: where a source's raw files lie, or the root."""

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Samples:
    """Reads pictures and windows of a list's rows; threads may share it."""

    def __init__(
        self, rows: pl.DataFrame, root: Place, places: Mapping[str, Place], *, cache_bytes: int, max_pixels: int,
        clip_timeout_s: float = 60.0,
    ) -> None:  # fmt: skip
        self._rows, self._root, self._places = rows, root, places
        self._max_pixels = max_pixels
        self._is_clip = rows["start_seconds"].is_not_null().to_numpy()
        self._is_held_out = rows["held_out"].to_numpy()
        self._cache = PixelCache(cache_bytes)
        self._short_sides: dict[int, int] = {}
        self._stores: dict[str, Store] = {}
        self._clips = ClipReader(timeout_s=clip_timeout_s, max_pixels=max_pixels)

    def close(self) -> None:
        """End the decoding processes."""
        self._clips.close()

    def training_rows(self, *, clips: bool) -> dict[str, NDArray[np.int64]]:
        """Return the numbers of the rows to train on by source; sources without any are left out."""
        return self._by_source((self._is_clip == clips) & ~self._is_held_out)

    def held_out_rows(self, *, clips: bool) -> list[int]:
        """Return the numbers of the rows to measure, in the order of their content's digests."""
        chosen = np.flatnonzero((self._is_clip == clips) & self._is_held_out)
        return sorted((int(row) for row in chosen), key=lambda row: self._rows["sha256"][row])

    def name(self, row: int) -> tuple[str, str]:
        """Return a row's source and key."""
        return self._rows["source"][row], self._rows["key"][row]

    def crop(self, row: int, side: int, frames: int, rng: np.random.Generator) -> Pixels:
        """Cut a square (T, H, W, C) out of a picture or clip at one of its sizes.

        Raises:
            SampleError: `too_small` for a crop of `side`, or it cannot be read.
        """
        whole = self._window(row, side, frames, rng) if self._is_clip[row] else self._sized(row, side, rng)[None]
        spans = []
        for length in whole.shape[1:3]:
            start = int(rng.integers(length - side + 1))
            spans.append(slice(start, start + side))
        return whole[:, spans[0], spans[1]]

    def picture(self, row: int) -> Pixels:
        """Decode a picture as it is; raises SampleError."""
        return decode_picture(self._opened(row))

    def _opened(self, row: int) -> Image.Image:
        return open_picture(self._bytes(row), sha256=self._rows["sha256"][row], max_pixels=self._max_pixels)

    def first_window(self, row: int, frames: int, short_side: int) -> Pixels:
        """Decode the first frames of a clip (T, H, W, C); raises SampleError."""
        found = self._rows.row(row, named=True)
        return self._decoded_window(found, found["start_seconds"], frames, min(short_side, _short_side(found)))

    def _sized(self, row: int, side: int, rng: np.random.Generator) -> Pixels:
        image = None
        if row not in self._short_sides:  # told by the header alone: what was drawn before changes no later draw
            image = self._opened(row)
            self._short_sides[row] = decoded_short_side(image.size)
        fitting = short_sides(side, self._short_sides[row])
        if not fitting:
            raise SampleError("too_small", f"smaller than a crop of {side} pixels")
        chosen = fitting[rng.integers(len(fitting))]
        return self._cache.get((row, chosen), lambda: shrunk(decode_picture(image or self._opened(row)), chosen))

    def _window(self, row: int, side: int, frames: int, rng: np.random.Generator) -> Pixels:
        found = self._rows.row(row, named=True)
        fitting = short_sides(side, _short_side(found))
        if not fitting:
            raise SampleError("too_small", f"smaller than a crop of {side} pixels")
        windows = (found["end_frame"] - found["start_frame"]) // frames
        if windows < 1:
            raise SampleError("no_frames", f"fewer than {frames} frames")
        number, short_side = int(rng.integers(windows)), fitting[rng.integers(len(fitting))]
        length_s = (found["end_seconds"] - found["start_seconds"]) / (found["end_frame"] - found["start_frame"])
        start_s = found["start_seconds"] + number * frames * length_s
        return self._cache.get(
            (row, number, short_side), lambda: self._decoded_window(found, start_s, frames, short_side)
        )

    def _decoded_window(self, found: Mapping[str, Any], start_s: float, frames: int, short_side: int) -> Pixels:
        place = self._places[found["source"]]
        return self._clips.window(
            place.url, place.options, found["path"], seconds=start_s, frames=frames, short_side=short_side
        )

    def _bytes(self, row: int) -> bytes:
        packed, source, path, offset, length = (self._rows[name][row] for name in _PICTURES_COLUMNS)
        place = self._root if packed else self._places[source]
        if place.url not in self._stores:
            self._stores[place.url] = open_store(place.url, place.options)
        return self._stores[place.url].read_range(path, offset, length)

    def _by_source(self, chosen: NDArray[np.bool_]) -> dict[str, NDArray[np.int64]]:
        return dict(self._grouped(np.flatnonzero(chosen)))

    def _grouped(self, numbers: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.int64]]]:
        sources = self._rows["source"].gather(numbers).to_numpy()
        for name in sorted(set(sources)):
            yield name, numbers[sources == name]


def _short_side(clip: Mapping[str, Any]) -> int:
    return int(min(clip["height_px"], clip["width_px"]))
