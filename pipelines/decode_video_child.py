"""The process that decodes video for `decode_video.py`: `python -m tokenmill.pipelines.decode_video_child FD MEMORY`.

Answers requests over the inherited socket and ends when it closes. While it works on an answer the kernel's alarm is
set, which ends it even inside hung C code with the parent gone; while it waits for the parent to take pixels it is not.
Its address space may grow by MEMORY bytes (0: without limit) beyond what the imports take.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenmill.errors import RunError, SampleError
from tokenmill.faults import fault_point
from tokenmill.pipelines.fault_message import fault_message
from tokenmill.pipelines.frame_socket import Message, Pixels, receive, send
from tokenmill.pipelines.line_child_server import leave_ending_to_the_parent
from tokenmill.pipelines.memory_limit import MemoryLimit

if TYPE_CHECKING:
    from tokenmill.pipelines.film import Film

Reply = tuple[Message, Pixels | None]

BATCH_FRAMES = 64
_BATCH_BYTES = 32 << 20
_LACK_OF_MEMORY = ("corrupt", "truncated", "wrong_frame_count", "not_a_video")  # what FFmpeg may call it
_NO_MEMORY: Message = {
    "kind": "bad",
    "reason": "too_much_memory",
    "message": "decoding it takes more memory than video_memory_bytes allows",
}
_THEMSELVES = (ImportError, MemoryError, FileNotFoundError, PermissionError, RunError)


class Server:
    """Answers one request after the other; keeps the last file open where it stopped."""

    def __init__(self, memory: MemoryLimit) -> None:
        self._memory = memory
        self._film: Film | None = None
        self._identity: tuple[Any, ...] = ()
        self._devices: set[str] = set()  # those that were tried

    def answer(self, request: Message) -> Iterator[Reply]:
        """Yield the replies to a request: dictionaries, some followed by pixels (T H W C)."""
        fault_point("decode:clip")
        fault_point(f"decode:{Path(request['path']).name}")
        try:
            film = self._opened(request)
            yield from _ANSWERS[request["do"]](film, request)
            yield {"kind": "end", "counts": self._counted()}, None
        except SampleError as error:
            block = self._film.block_bytes if self._film else 0
            lacked = error.reason in _LACK_OF_MEMORY and self._memory.would_refuse(block)
            bad = _NO_MEMORY if lacked else {"kind": "bad", "reason": error.reason, "message": error.message}
            yield bad | {"counts": self._counted()}, None
            self._forget()
        except MemoryError:  # of the limit's making: where the machine itself has no more, the kernel kills
            yield _NO_MEMORY, None
            self._forget()
        except _THEMSELVES as error:
            yield _raised(error), None
            self._forget()
        except Exception as error:  # hostile bytes make PyAV raise anything; many in a row end the run
            yield {"kind": "bad", "reason": "decoder_error", "message": fault_message(error)}, None
            self._forget()

    def _opened(self, request: Message) -> Film:
        from tokenmill.pipelines.film import Film

        path, device = request["path"], request["hwaccel"]
        status = Path(path).stat()
        identity = (path, device, status.st_ino, status.st_size, status.st_mtime_ns)
        if status.st_size == 0 and Path(path).is_file():
            raise SampleError("empty", "no bytes")
        if self._film is None or identity != self._identity:
            self._forget()
            self._try_device(device)
            self._film, self._identity = Film(path, max_pixels=request["max_pixels"], hwaccel=device), ()
            self._film.open()
            self._identity = identity
        return self._film

    def _try_device(self, device: str | None) -> None:
        from tokenmill.pipelines.film_checks import check_device

        if device is not None and device not in self._devices:
            check_device(device)
            self._devices.add(device)

    def _forget(self) -> None:
        if self._film is not None:
            self._film.close()
        self._film = None

    def _counted(self) -> dict[str, int]:
        """Return what was counted since the last time."""
        if self._film is None:
            return {}
        counts = dict(self._film.counts)
        self._film.counts.clear()
        return counts


def _raised(error: Exception) -> Message:
    """Describe an error that is no sample's fault: it surfaces in the parent as what it is."""
    kind = next((kind.__name__ for kind in _THEMSELVES if isinstance(error, kind)), type(error).__name__)
    return {"kind": "raise", "type": kind, "message": fault_message(error)}


def _probed(film: Film, request: Message) -> Iterator[Reply]:
    yield {"kind": "info", "info": film.facts()}, None


def _timed(film: Film, request: Message) -> Iterator[Reply]:
    yield {"kind": "times"}, film.index.times.astype("<f8").view(np.uint8)


def _decoded(film: Film, request: Message) -> Iterator[Reply]:
    from tokenmill.pipelines.film_picture import scaled_size

    whole = request["do"] == "scan"
    num_frames = film.index.num_frames
    numbers = range(num_frames) if whole else request["numbers"]
    if numbers and numbers[-1] >= num_frames:
        raise SampleError("wrong_frame_count", f"frame {numbers[-1]} of a file that has {num_frames}")
    height, width = scaled_size(film.height_px, film.width_px, request["short_side_px"])
    size = max(1, min(BATCH_FRAMES, _BATCH_BYTES // (height * width * 3)))
    held = min(size, len(numbers)) if whole else len(numbers)
    if held * height * width * 3 > request["max_bytes"]:
        raise SampleError("too_many_bytes", f"{held} frames of {width} x {height} exceed {request['max_bytes']} bytes")
    seconds = film.seconds_to_decode(numbers)
    yield {"kind": "size", "size": (len(numbers), height, width, 3), "film_s": seconds}, None
    batch = np.empty((size, height, width, 3), np.uint8)  # one for all: fresh memory costs more than the copy
    pictures = film.read(numbers, height, width)
    for _ in range(0, len(numbers), size):
        filled = 0
        for row, picture in zip(batch, islice(pictures, size), strict=False):
            row[:] = picture
            filled += 1
        yield {"kind": "frames"}, batch[:filled]


_ANSWERS = {"probe": _probed, "times": _timed, "frames": _decoded, "scan": _decoded}


def serve(channel: socket.socket, max_memory_bytes: int) -> None:
    """Answer requests until the other end closes."""
    try:
        import tokenmill.pipelines.film  # noqa: F401  slow, and none of the first clip's time
    except Exception as error:
        send(channel, _raised(error))
        return
    server = Server(MemoryLimit(max_memory_bytes))
    send(channel, {"kind": "ready"})
    while True:
        try:
            request, _ = receive(channel)
        except EOFError:
            return
        limit_s = request["limit_s"]
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        for message, frames in server.answer(request):
            signal.setitimer(signal.ITIMER_REAL, 0)
            send(channel, message, frames)
            limit_s += request["per_second_s"] * message.get("film_s", 0.0)
            signal.setitimer(signal.ITIMER_REAL, limit_s)
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    """Serve on the inherited socket, silently: FFmpeg writes a line for every broken frame."""
    leave_ending_to_the_parent()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))


if __name__ == "__main__":
    main()
