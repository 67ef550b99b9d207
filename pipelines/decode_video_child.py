"""The process that decodes video for `decode_video.py`: `python -m tokenmill.pipelines.decode_video_child FD LIMIT_S`.

Answers requests over the inherited socket and ends when it closes. While it works on an answer the kernel's alarm is
set, which ends it even inside hung C code with the parent gone; while it waits for the parent to take pixels it is not.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenmill.errors import SampleError
from tokenmill.faults import fault_point
from tokenmill.pipelines.fault_message import fault_message
from tokenmill.pipelines.frame_socket import Message, Pixels, receive, send

if TYPE_CHECKING:
    from tokenmill.pipelines.film import Film

Reply = tuple[Message, Pixels | None]

BATCH_FRAMES = 64
_BATCH_BYTES = 32 << 20
_THEMSELVES = (ImportError, MemoryError, FileNotFoundError, PermissionError)


class Server:
    """Answers one request after the other; keeps the last file open where it stopped."""

    def __init__(self) -> None:
        self._film: Film | None = None
        self._identity: tuple[Any, ...] = ()

    def answer(self, request: Message) -> Iterator[Reply]:
        """Yield the replies to a request: dictionaries, some followed by pixels (T H W C)."""
        fault_point("decode:clip")
        fault_point(f"decode:{Path(request['path']).name}")
        try:
            film = self._opened(request)
            yield from _probed(film) if request["do"] == "probe" else _decoded(film, request)
            yield {"kind": "end"}, None
        except SampleError as error:
            self._film = None
            yield {"kind": "bad", "reason": error.reason, "message": error.message}, None
        except Exception as error:
            yield _raised(error), None

    def _opened(self, request: Message) -> Film:
        from tokenmill.pipelines.film import Film

        status = Path(request["path"]).stat()
        identity = (request["path"], status.st_ino, status.st_size, status.st_mtime_ns)
        if status.st_size == 0 and Path(request["path"]).is_file():
            raise SampleError("empty", "no bytes")
        if self._film is None or identity != self._identity:
            self._film = None  # close the old one first
            self._film, self._identity = Film(request["path"], max_pixels=request["max_pixels"]), identity
        return self._film


def _raised(error: Exception) -> Message:
    """Describe an error that is no sample's fault: it surfaces in the parent as what it is."""
    kind = next((kind.__name__ for kind in _THEMSELVES if isinstance(error, kind)), type(error).__name__)
    return {"kind": "raise", "type": kind, "message": fault_message(error)}


def _probed(film: Film) -> Iterator[Reply]:
    info = {"num_frames": film.num_frames, "fps": film.fps, "width_px": film.width_px, "height_px": film.height_px}
    yield {"kind": "info", "info": info | {"seconds": film.num_frames / film.fps}}, None


def _decoded(film: Film, request: Message) -> Iterator[Reply]:
    from tokenmill.pipelines.film import resized, scaled_size

    whole = request["do"] == "scan"
    numbers = range(film.num_frames) if whole else request["numbers"]
    if numbers and numbers[-1] >= film.num_frames:
        raise SampleError("wrong_frame_count", f"frame {numbers[-1]} of a file that has {film.num_frames}")
    height, width = scaled_size(film.height_px, film.width_px, request["short_side_px"])
    size = max(1, min(BATCH_FRAMES, _BATCH_BYTES // (height * width * 3)))
    held = min(size, len(numbers)) if whole else len(numbers)
    if held * height * width * 3 > request["max_bytes"]:
        raise SampleError("too_many_bytes", f"{held} frames of {width} x {height} exceed {request['max_bytes']} bytes")
    yield {"kind": "size", "size": (len(numbers), height, width, 3)}, None
    batch = np.empty((size, height, width, 3), np.uint8)  # one for all: fresh memory costs more than the copy
    for start in range(0, len(numbers), size):
        chunk = numbers[start : start + size]
        for row, number in zip(batch, chunk, strict=False):
            row[:] = resized(film.read(number), height, width)
        yield {"kind": "frames"}, batch[: len(chunk)]


def serve(channel: socket.socket, limit_s: float) -> None:
    """Answer requests until the other end closes."""
    try:
        import tokenmill.pipelines.film  # noqa: F401  slow, and none of the first clip's time
    except Exception as error:
        send(channel, _raised(error))
        return
    server = Server()
    send(channel, {"kind": "ready"})
    while True:
        try:
            request, _ = receive(channel)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        for message, frames in server.answer(request):
            signal.setitimer(signal.ITIMER_REAL, 0)
            send(channel, message, frames)
            signal.setitimer(signal.ITIMER_REAL, limit_s)
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    """Serve on the inherited socket, silently: FFmpeg writes a line for every broken frame."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    serve(socket.socket(fileno=int(sys.argv[1])), float(sys.argv[2]))


if __name__ == "__main__":
    main()
