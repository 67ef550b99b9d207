"""Pictures as codes: resized, put into buckets of equal size and encoded in batches that hang on the unit alone.

Padding a batch of mixed sizes would change codes (EMU3.md §2), so only equal sizes share one.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.pipelines.decoding import SampleReader
from tokenmill.pipelines.samples import SampleSlice
from tokenmill.pipelines.tokens_archive import TokenSample
from tokenmill.pipelines.tokens_clip import TokenArea
from tokenmill.tokenize.preprocess import resize
from tokenmill.tokenize.vision import VisionTokenizer

Waiting = tuple[TokenSample, NDArray[np.uint8]]


@dataclass
class Buckets:
    """Pictures that wait for a full batch of their size."""

    batch_size: int
    waiting: dict[tuple[int, ...], list[Waiting]] = field(default_factory=lambda: defaultdict(list))

    def add(self, sample: TokenSample, pixels: NDArray[np.uint8]) -> list[Waiting]:
        """Put a picture in its bucket; returns the bucket's pictures when it is full, else nothing."""
        bucket = self.waiting[pixels.shape]
        bucket.append((sample, pixels))
        return self.waiting.pop(pixels.shape) if len(bucket) == self.batch_size else []

    def rest(self) -> Iterator[list[Waiting]]:
        """Yield what is left, smallest size first."""
        for shape in sorted(self.waiting):
            yield self.waiting[shape]


class ImageEncoder:
    """Decodes, resizes and encodes the pictures of a slice; `seconds` counts what decoding and the model took."""

    def __init__(self, vision: VisionTokenizer, area: TokenArea) -> None:
        self._vision, self._area = vision, area
        self.seconds: dict[str, float] = defaultdict(float)

    def __call__(
        self, reader: SampleReader, piece: SampleSlice, rows: pl.DataFrame, samples: Sequence[TokenSample]
    ) -> None:
        """Fill in the codes, or the error, of every sample; `samples` are those of the rows."""
        buckets = Buckets(self._vision.batch_size)
        mark = time.perf_counter()
        for sample, image in zip(samples, reader.images(piece, rows), strict=True):
            if isinstance(image, SampleError):
                sample.error = image
                continue
            try:
                full = buckets.add(sample, resize(image, self._area.of(image.shape[0], image.shape[1])))
            except SampleError as error:
                sample.error = error
                continue
            self.seconds["decode"] += time.perf_counter() - mark
            self._encode(full)
            mark = time.perf_counter()
        for batch in buckets.rest():
            self._encode(batch)

    def _encode(self, batch: Sequence[Waiting]) -> None:
        if not batch:
            return
        started = time.perf_counter()
        codes_Bhw = self._vision.encode_images(np.stack([pixels for _, pixels in batch]))
        for (sample, _), codes in zip(batch, codes_Bhw, strict=True):
            sample.codes = [codes[None]]
        self.seconds["model"] += time.perf_counter() - started
