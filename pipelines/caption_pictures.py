"""From a source's rows to what a captioner looks at: encoded pictures or pixels, made in the decoding threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.captions.captioner import EncodedPicture, Takes
from tokenmill.errors import SampleError
from tokenmill.pipelines.decoding import SampleReader
from tokenmill.pipelines.samples import SampleSlice


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What one question is about: see `Request`."""

    pictures: tuple[EncodedPicture, ...] = ()
    frames: NDArray[np.uint8] | None = None
    seconds: tuple[float, ...] = ()


class PictureMaker:
    """Prepares the pictures of questions, in their order."""

    def __init__(self, reader: SampleReader, takes: Takes, max_side_px: int | None, modality: str, frames: int) -> None:
        self._reader, self._takes, self._side, self._modality, self._frames = (
            reader, takes, max_side_px, modality, frames,
        )  # fmt: skip

    def pictures(self, piece: SampleSlice, questions: pl.DataFrame) -> Iterator[Prepared | SampleError]:
        """Yield what each question is about; `questions` are index rows with `piece_start_frame`, …."""
        for image in self._reader.images(piece, questions):
            yield image if isinstance(image, SampleError) else Prepared(frames=image[None])
