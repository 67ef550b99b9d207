"""What a captioner looks at: from the rows of a source to encoded pictures or pixels, as the engine takes them.

All of it happens in the decoding threads of the reader and runs ahead of the engine by its window alone (four pictures
a thread, and at most four stretches of clips for each of one more than the threads), so memory does not grow with the
number of questions. A clip of 10 s at 720p, 12 frames, costs 0.5 CPU-seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.captions.captioner import EncodedPicture, Takes
from tokenmill.errors import SampleError
from tokenmill.filters.clip_frames import FrameChoice
from tokenmill.filters.shrink import shrink
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.decoding import SampleReader
from tokenmill.pipelines.encode_image import as_jpeg, encoded_picture, shrunk_picture
from tokenmill.pipelines.samples import SampleSlice
from tokenmill.pipelines.stretches import stretches
from tokenmill.pipelines.tokens_clip import check_times

__all__ = ["PictureMaker", "Prepared", "stretches"]

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a request shows: `pictures` where encoded ones are taken, `frames` (THWC uint8 RGB) where pixels are.

    `seconds` says when each frame is seen, from the beginning of the clip, not of the stretch; empty for a picture.
    """

    pictures: tuple[EncodedPicture, ...] = ()
    frames: NDArray[np.uint8] | None = None
    seconds: tuple[float, ...] = ()


class PictureMaker:
    """Makes what an engine looks at.

    Args:
        reader: of the source; its limits are kept, its budget of failures in a row too.
        takes, max_side_px: the engine's own.
        frames: of a clip or stretch, at most: the middle frame of each of so many equal parts.
    """

    def __init__(self, reader: SampleReader, takes: Takes, max_side_px: int | None, modality: str, frames: int) -> None:
        self._reader, self._takes, self._max_side_px = reader, takes, max_side_px
        self._modality, self._choice = modality, FrameChoice(frames=frames)
        self._times: tuple[str, NDArray[np.float64]] | None = None

    def pictures(self, piece: SampleSlice, questions: pl.DataFrame) -> Iterator[Prepared | SampleError]:
        """Yield what each question shows, in their order; those of a film cost least sorted by frame.

        Args:
            questions: rows of the index; of clips with `piece_start_frame` and `piece_end_frame`, where a long clip has
                a row for each stretch.
        Raises:
            RunError: too many samples in a row failed. StorageError: bytes or a film are not there.
        """
        if self._takes == "text" or self._modality == "text":
            return iter([Prepared()] * questions.height)
        if self._modality == "video":
            return self._reader.clips(questions, self._stretch)
        return self._reader.samples(piece, questions, self._picture)

    def _picture(self, data: bytes) -> Prepared:
        limits: dict[str, Any] = {"max_side_px": self._max_side_px, "max_pixels": self._reader.limits.max_pixels}
        if self._takes == "encoded":
            return Prepared(pictures=(encoded_picture(data, **limits),))
        return Prepared(frames=shrunk_picture(data, **limits)[None])

    def _stretch(self, decoder: VideoDecoder, path: Path, row: Row) -> Prepared:
        times = self._times_of(decoder, path, row)
        start, end = row["piece_start_frame"], row["piece_end_frame"]
        numbers = [start + number for number in self._choice.numbers(end - start)]
        frames = decoder.frames(path, numbers, short_side_px=self._short_side_px(row))
        seconds = tuple(round(float(times[number] - times[row["start_frame"]]), 6) for number in numbers)
        if self._max_side_px is not None and max(frames.shape[1:3]) > self._max_side_px:  # larger than the index says
            frames = np.stack([shrink(frame, self._max_side_px) for frame in frames])
        if self._takes == "encoded":
            return Prepared(pictures=tuple(map(as_jpeg, frames)), seconds=seconds)
        return Prepared(frames=frames, seconds=seconds)

    def _short_side_px(self, row: Row) -> int | None:
        """Say to which shorter side frames are scaled by the decoder, for the longer one to be as long as allowed."""
        shorter, longer = sorted((row["width_px"], row["height_px"]))
        if self._max_side_px is None or longer <= self._max_side_px:
            return None
        return int(max(1, shorter * self._max_side_px // longer))

    def _times_of(self, decoder: VideoDecoder, path: Path, row: Row) -> NDArray[np.float64]:
        """Return a film's times, asked for once for neighbouring clips of one film."""
        known = self._times
        if known is None or known[0] != str(path):
            known = self._times = (str(path), decoder.times(path))
        check_times(known[1], row)
        return known[1]
