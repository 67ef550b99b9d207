"""The picture or clip that a row of a table of questions is about: found below one folder, decoded by safe decoders.

A row may name nothing outside that folder: tables come from elsewhere, and workers can read more than their authors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.filters.clip_frames import FrameChoice
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.decode_image import decode_image
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.decoding import DecodeLimits
from tokenmill.pipelines.sources.named_files import named_file

_KINDS = ("image", "clip")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Media:
    """Frames (THWC) of what a row shows, a picture's one; `seconds` of a clip's, from its beginning."""

    sha256: str
    frames: NDArray[np.uint8]
    seconds: tuple[float, ...] = ()


class MediaReader:
    """Reads what rows name below `folder`; keeps the video decoder's process between rows."""

    def __init__(self, folder: Store, limits: DecodeLimits, frames: int) -> None:
        self._folder, self._limits, self._choice = folder, limits, FrameChoice(frames=frames)
        self._decoder: VideoDecoder | None = None

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()

    def __call__(self, row: Mapping[str, Any]) -> Media:
        """Read a row's `image` or `clip`: a name, bytes, or a mapping with either.

        Raises:
            SampleError: `no_picture`, `two_pictures`, `bad_path`, `missing_file`, or as decoding says.
        """
        named = [name for name in _KINDS if row.get(name) is not None]
        if not named:
            raise SampleError("no_picture", "the row has neither image nor clip")
        if len(named) > 1:
            raise SampleError("two_pictures", "the row has both image and clip")
        data = self._bytes(row[named[0]])
        if named[0] == "clip":
            return self._clip(data)
        frame = decode_image(data, max_pixels=self._limits.max_pixels)
        return Media(sha256=sha256_hex(data), frames=frame[None])

    def _bytes(self, value: Any) -> bytes:
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise SampleError("bad_value", f"a picture is a name or bytes, found {type(value).__name__}")
        return named_file(self._folder, "", value.removeprefix(f"{self._folder.url}/"))

    def _clip(self, data: bytes) -> Media:
        if self._decoder is None:
            self._decoder = self._limits.video_decoder()
        with NamedTemporaryFile(prefix="tokenmill-", suffix=".mp4") as file:
            file.write(data)
            file.flush()
            path = Path(file.name)
            times = self._decoder.times(path)
            numbers = self._choice.numbers(len(times) - 1)
            frames = self._decoder.frames(path, numbers)
        seconds = tuple(round(float(times[number]), 6) for number in numbers)
        return Media(sha256=sha256_hex(data), frames=frames, seconds=seconds)
