"""Video to frames through a child process that may hang, crash or lie without harm (decord did: issues 25, 208, 229).

The child is a plain `python -m`, not one of `multiprocessing`: it starts alike from a script, a Ray actor and a
daemonic data-loader worker, and never runs the caller's `__main__` again. It lives on between clips and is replaced
after a crash or a time-out.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RunError, SampleError
from tokenmill.pipelines.frame_socket import Message, receive, send

Frames = NDArray[np.uint8]  # T H W C, RGB

_CHILD = "tokenmill.pipelines.decode_video_child"
_START_S = 120.0  # Python on a cold, busy disk
_NO_FRAMES = np.empty((0, 0, 0, 3), np.uint8)
_SLOWEST_BYTES_PER_S = 10 << 20  # of a disk: the whole file is read once for its table of packets
_LARGEST_BATCH = 64  # frames of the child's batches
_GRACE_S = 5.0  # after the parent has given up, until the child's own alarm rings
_THEMSELVES: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (ImportError, MemoryError, FileNotFoundError, PermissionError, RunError)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What a file holds, upright; `fps` is the average, `seconds` the time from the first frame to behind the last.

    `reader` names what decodes it, `codec` and `pixel_format` are FFmpeg's names.
    """

    num_frames: int
    fps: float
    width_px: int
    height_px: int
    seconds: float
    reader: str = ""
    codec: str = ""
    pixel_format: str = ""
    has_audio: bool = False
    is_interlaced: bool = False
    is_variable_rate: bool = False
    is_hdr: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledFrames:
    """Frames of a clip at an even rate: THWC RGB, their numbers in the file, their seconds from the clip's first."""

    frames: Frames
    numbers: NDArray[np.int64]
    seconds: NDArray[np.float64]


class VideoDecoder:
    """Decodes local files forward in one child process; a context manager, for one thread.

    Clips of one file cost least in ascending order: the child keeps the last file open where it stopped.

    Args:
        timeout_s, per_second_s: wall-clock limit for a call, and for each batch of a scan: so many seconds, so many
            for each second of film that has to be decoded, and one for every 10 MiB of the file.
        max_bytes: what one call, or one batch of a scan, may hand over.
        max_pixels: limit for a frame, taken from the header before decoding.
        max_memory_bytes: by which the child may grow, 0 for no limit; none is set for a decoding device's sake.
        hwaccel: FFmpeg's name of a device that decodes (`cuda`); codecs it doesn't know are decoded in software.

    Attributes:
        counts: frames that came out of the decoder (`decoded`) and that were made into pictures (`converted`) so far.
        allowed_s: the limit that the last call had.

    All methods raise SampleError: `empty`, `not_a_video`, `truncated`, `corrupt`, `no_frames`, `wrong_frame_count`,
    `absurd_times`, `too_many_pixels`, `too_many_bytes`, `decoder_crash`, `decoder_error`, `too_much_memory` and
    `timeout` (transient).
    ImportError, a missing file and RunError (no such device) come through as themselves.
    """

    def __init__(
        self, *, timeout_s: float = 60.0, per_second_s: float = 4.0, max_bytes: int = 2 << 30,
        max_pixels: int = 1 << 26, max_memory_bytes: int = 4 << 30, hwaccel: str | None = None,
    ) -> None:  # fmt: skip
        self._timeout_s, self._per_second_s = timeout_s, per_second_s
        self._limits = {"max_bytes": max_bytes, "max_pixels": max_pixels, "hwaccel": hwaccel}
        self._max_memory_bytes = 0 if hwaccel else max_memory_bytes  # CUDA reserves more addresses than any limit
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._answering = False
        self.allowed_s = timeout_s
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> VideoDecoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def probe(self, path: str | Path) -> VideoInfo:
        """Open `path` and compare what its header announces with what is there."""
        deadline = self._request("probe", path)
        info, _ = self._reply(deadline)
        self._reply(deadline)
        return VideoInfo(**info["info"])

    def frames(self, path: str | Path, numbers: Sequence[int], *, short_side_px: int | None = None) -> Frames:
        """Decode the frames `numbers` (ascending, a range will do), shrunk to `short_side_px`; returns THWC RGB."""
        if np.any(np.diff(numbers) <= 0):
            raise ValueError("frame numbers must ascend")
        wanted = [int(number) for number in numbers]
        deadline = self._request("frames", path, numbers=wanted, short_side_px=short_side_px)
        size, _ = self._reply(deadline)
        deadline = self._extended(deadline, size["film_s"])
        frames = np.empty(size["size"], np.uint8)
        filled = 0
        while self._answering:
            _, batch = self._reply(deadline, into=frames[filled:])
            filled += len(batch)
        return frames

    def times(self, path: str | Path) -> NDArray[np.float64]:
        """Return when each frame is shown, and when the last one ends: num_frames + 1 seconds from the file's start."""
        deadline = self._request("times", path)
        _, times = self._reply(deadline)
        self._reply(deadline)
        return times.view("<f8").astype(np.float64, copy=False)

    def sample(
        self, path: str | Path, start: int, end: int, fps: float, *, short_side_px: int | None = None,
        max_seconds: float | None = None,
    ) -> SampledFrames:  # fmt: skip
        """Decode the frames of [start, end) that are shown at start, start + 1/fps, …: each at most once."""
        times = self.times(path)
        numbers = frames_at_rate(times, start, end, fps, max_seconds)
        frames = self.frames(path, list(numbers), short_side_px=short_side_px)
        return SampledFrames(frames=frames, numbers=numbers, seconds=times[numbers] - times[start])

    def scan(self, path: str | Path, *, short_side_px: int | None = None) -> Iterator[Frames]:
        """Decode the whole file in batches of up to 64 frames (THWC RGB); the child works one batch ahead."""
        size, _ = self._reply(self._request("scan", path, short_side_px=short_side_px))
        batch_s = size["film_s"] * _LARGEST_BATCH / size["size"][0]
        while self._answering:
            deadline = self._extended(time.monotonic() + self._timeout_s, batch_s)
            _, batch = self._reply(deadline)
            if len(batch):
                yield batch

    def close(self) -> None:
        """End the child; the next call starts another."""
        process, channel = self._process, self._channel
        self._process = self._channel = None
        self._answering = False
        if channel is not None:
            channel.close()
        if process is not None:
            process.kill()
            process.wait()

    @property
    def process_id(self) -> int:
        """The child's; 0 where none lives."""
        return self._process.pid if self._process else 0

    def _request(self, do: Literal["probe", "times", "frames", "scan"], path: str | Path, **details: Any) -> float:
        """Send a request; returns the deadline of its answer."""
        if self._answering:  # a scan was left in the middle
            self.close()
        channel = self._connected()
        self._answering = True
        self.allowed_s = self._timeout_s + _size(path) / _SLOWEST_BYTES_PER_S
        limits = {"limit_s": self.allowed_s + _GRACE_S, "per_second_s": self._per_second_s, **self._limits}
        try:
            send(channel, {"do": do, "path": str(path), **limits, **details})
        except ConnectionError as error:
            raise self._died() from error
        return time.monotonic() + self.allowed_s

    def _extended(self, deadline: float, film_s: float) -> float:
        """Allow the time for so many seconds of film."""
        more = self._per_second_s * film_s
        self.allowed_s += more
        return deadline + more

    def _reply(self, deadline: float, into: Frames | None = None) -> tuple[Message, Frames]:
        """Wait for the next part of the answer; raises what it reports."""
        assert self._channel is not None
        try:
            reply, frames = receive(self._channel, deadline, into)
        except TimeoutError as error:
            self.close()
            raise _timed_out(self.allowed_s) from error
        except (EOFError, ConnectionError) as error:
            raise self._died() from error
        self._answering = reply["kind"] not in ("end", "bad", "raise")
        self.counts.update(reply.get("counts", {}))
        if reply["kind"] == "bad":
            if lacks_memory := reply["reason"] == "too_much_memory":
                self.close()  # what a heap was torn into does not come back
            raise SampleError(reply["reason"], reply["message"], transient=lacks_memory)
        if reply["kind"] == "raise":
            raise _as_raised(reply["type"], reply["message"])
        return reply, _NO_FRAMES if frames is None else frames

    def _died(self) -> SampleError:
        process = self._process
        code = process.wait(_GRACE_S) if process else 0
        self.close()
        if code == -signal.SIGALRM:
            return _timed_out(self.allowed_s)
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        transient = code == -signal.SIGKILL  # somebody else's decision, most likely for lack of memory
        return SampleError("decoder_crash", f"the decoding process died: {cause}", transient=transient)

    def _connected(self) -> socket.socket:
        """Return the way to a living child."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._channel is None:
            return self._start()
        return self._channel

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", _CHILD, str(theirs.fileno()), str(self._max_memory_bytes)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with theirs:
            self._process = subprocess.Popen(
                command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        self._channel = ours
        try:
            ready, _ = receive(ours, time.monotonic() + _START_S)
        except (OSError, EOFError) as error:
            self.close()
            raise RunError(f"the video decoder did not start; try: python -m {_CHILD}") from error
        if ready["kind"] == "raise":
            self.close()
            raise _as_raised(ready["type"], ready["message"])
        return ours


def frames_at_rate(
    times: NDArray[np.float64], start: int, end: int, fps: float, max_seconds: float | None = None
) -> NDArray[np.int64]:
    """Return the frames of [start, end) that are on show at even times, ascending, none twice; the first in any case.

    `times` holds when each frame begins, and when the last one ends.
    """
    seconds = times[end] - times[start]
    seconds = seconds if max_seconds is None else min(seconds, max_seconds)
    wanted = times[start] + np.arange(max(1, int(seconds * fps + 1e-6))) / fps
    shown = np.searchsorted(times[:end], wanted + 1e-6, side="right") - 1
    return np.unique(np.clip(shown, start, end - 1)).astype(np.int64)


def _size(path: str | Path) -> int:
    """Return the bytes of a file, 0 where there is none: the child says what is wrong."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _timed_out(timeout_s: float) -> SampleError:
    return SampleError("timeout", f"no answer within {timeout_s:g} s", transient=True)


def _as_raised(name: str, message: str) -> Exception:
    if name in _THEMSELVES:
        return _THEMSELVES[name](message)
    return RunError(f"video decoder: {name}: {message}")
