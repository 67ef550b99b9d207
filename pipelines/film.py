"""Read one video file strictly forward, and notice when it is not what it says.

decord decodes: its frames equal PyAV's bit for bit on the demo's clips, in about half the time. PyAV reads the header,
because decord believes whatever packets it finds: of a cut-off clip it reports just the frames that are left. Runs in
the child process of `decode_video.py` only; a clip far inside a file costs decoding all that comes before it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import av
import decord
import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError

Frame = NDArray[np.uint8]  # H W C, RGB
_MP4_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


class Film:
    """One opened file: `num_frames`, `fps` (average), `height_px` and `width_px` after rotation."""

    def __init__(self, path: str, *, max_pixels: int) -> None:
        self._path = path
        self._is_cut_off = _is_cut_off(path)
        announced, width, height = _header(path, self._is_cut_off)
        if width * height > max_pixels:
            raise SampleError("too_many_pixels", f"frames of {width} x {height} are more than {max_pixels} pixels")
        self._reader, self._position = self._from_start(), 0
        self.num_frames = len(self._reader)
        if announced not in (0, self.num_frames):
            raise self._miscounted(f"the header announces {announced} frames, the file holds {self.num_frames}")
        self.fps = float(self._reader.get_avg_fps())
        self._first = self.read(0)
        self.height_px, self.width_px, _ = self._first.shape

    def read(self, number: int) -> Frame:
        """Return frame `number`; an earlier one than the last starts again from the beginning."""
        if number == 0 and self._position == 1:
            return self._first
        if number < self._position:
            self._reader, self._position = self._from_start(), 0
        try:
            if number > self._position:
                self._reader.skip_frames(number - self._position)
            frame = self._reader.next().asnumpy()
        except decord.DECORDError as error:
            raise _undecodable(error, self._is_cut_off) from error
        except StopIteration as error:
            raise self._miscounted(f"fewer frames than the {self.num_frames} it should have") from error
        self._position = number + 1
        return _tight(frame)

    def _from_start(self) -> Any:
        try:
            return decord.VideoReader(self._path, ctx=decord.cpu(0), num_threads=1)
        except (decord.DECORDError, RuntimeError, AssertionError) as error:
            raise _unreadable(self._is_cut_off) from error

    def _miscounted(self, message: str) -> SampleError:
        return SampleError("truncated" if self._is_cut_off else "wrong_frame_count", message)


def scaled_size(height: int, width: int, short_side_px: int | None) -> tuple[int, int]:
    """Scale a size so that its shorter side is `short_side_px`; never up."""
    scale = 1.0 if short_side_px is None else min(1.0, short_side_px / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resized(frame: Frame, height: int, width: int) -> Frame:
    """Shrink a frame by area averaging."""
    import cv2

    if frame.shape[:2] == (height, width):
        return frame
    smaller: Frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    return smaller


def _header(path: str, is_cut_off: bool) -> tuple[int, int, int]:
    """Read what the container announces: number of frames (0 where it doesn't say), width, height."""
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise SampleError("not_a_video", "no video stream")
            stream = container.streams.video[0]
            return stream.frames, stream.codec_context.width, stream.codec_context.height
    except av.error.FFmpegError as error:
        raise _unreadable(is_cut_off) from error


def _is_cut_off(path: str) -> bool:
    """Tell whether an MP4 or MOV announces more bytes than there are; False for other containers."""
    with Path(path).open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        position = file.seek(0)
        while position < end:
            head = file.read(16)
            if position == 0 and head[4:8] not in _MP4_FIRST_BOXES:
                return False
            size = int.from_bytes(head[:4], "big")
            size = int.from_bytes(head[8:16], "big") if size == 1 else size
            if size < 8:  # 0 means up to the end of the file; anything else is no box
                return False
            position = file.seek(position + size)
        return position > end


def _tight(frame: Frame) -> Frame:
    """Undo decord's row padding, which it counts as channels for pictures up to 16 pixels wide."""
    height, width, channels = frame.shape
    if channels == 3:
        return frame
    return np.ascontiguousarray(frame.reshape(height, -1)[:, : width * 3].reshape(height, width, 3))


# decord's and FFmpeg's own words carry times and addresses, so faults get fixed ones.
def _unreadable(is_cut_off: bool) -> SampleError:
    if is_cut_off:
        return SampleError("truncated", "the file ends inside its header or index")
    return SampleError("not_a_video", "no container with a decodable video stream")


def _undecodable(error: Exception, is_cut_off: bool) -> Exception:
    if "bad_alloc" in str(error):
        return MemoryError("decord ran out of memory")
    if is_cut_off:
        return SampleError("truncated", "the file ends inside a frame")
    return SampleError("corrupt", "a frame can't be decoded")
