"""Windows of clips through a child process, so that a clip that crashes or hangs the decoder costs itself alone.

One child a decoding thread, started when first needed and again after a crash or a time-out. `pipelines` has a larger
one for whole films; a window of four frames needs neither its index of packets nor its exact frame numbers.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RunError, SampleError

Frames = NDArray[np.uint8]
_START_S = 120.0  # Python on a cold, busy disk
_READ_BYTES = 1 << 20


class ClipReader:
    """Hands out children to threads, one at a time; `close` ends them."""

    def __init__(self, *, timeout_s: float, max_pixels: int) -> None:
        self._timeout_s, self._max_pixels = timeout_s, max_pixels
        self._idle: list[_Child] = []
        self._lock = threading.Lock()
        self._closed = False

    def window(
        self, url: str, options: Mapping[str, Any], path: str, *, seconds: float, frames: int, short_side: int
    ) -> Frames:
        """Decode `frames` frames from a time on, THWC RGB with a shorter side of `short_side`.

        Raises:
            SampleError: `no_frames`, `too_many_pixels`, `decoder_error`, `decoder_crash`, `timeout` (transient).
            RunError: the store's fault, or no decoder on this machine.
        """
        request = {
            "url": url, "options": dict(options), "path": path, "seconds": seconds, "frames": frames,
            "short_side": short_side, "max_pixels": self._max_pixels,
        }  # fmt: skip
        with self._lock:
            child = self._idle.pop() if self._idle else None
        child = child or _Child()
        try:
            found = child.ask(request, self._timeout_s)
        except SampleError:
            child.close()
            raise
        self._give_back(child)
        if "fatal" in found[0]:
            raise RunError(found[0]["fatal"])
        if "reason" in found[0]:
            raise SampleError(found[0]["reason"], found[0]["message"])
        return np.frombuffer(found[1], np.uint8).reshape(found[0]["shape"])

    def close(self) -> None:
        """End the children that have nothing to do; the others end when they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.close()

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(child)
                return
        child.close()


class _Child:
    def __init__(self) -> None:
        command = [sys.executable, "-m", "tokenmill.train.vision_clip_child"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._more_s = _START_S
        self._buffer = bytearray()

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """Return the answer's header and pixels; raises SampleError (`decoder_crash`, `timeout`)."""
        assert self._process.stdin is not None
        deadline = time.monotonic() + timeout_s + self._more_s
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError as error:
            raise SampleError("decoder_crash", "the decoder died") from error
        while b"\n" not in self._buffer:
            self._read(deadline)
        line, _, rest = bytes(self._buffer).partition(b"\n")
        header: dict[str, Any] = json.loads(line)
        self._buffer = bytearray(rest)
        size = int(np.prod(header["shape"])) if "shape" in header else 0
        while len(self._buffer) < size:
            self._read(deadline)
        pixels = bytes(self._buffer)
        self._buffer, self._more_s = bytearray(), 0.0
        return header, pixels

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self, deadline: float) -> None:
        assert self._process.stdout is not None
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([self._process.stdout], [], [], left_s)[0]:
            raise SampleError("timeout", "decoding took too long", transient=True)
        data = os.read(self._process.stdout.fileno(), _READ_BYTES)
        if not data:
            raise SampleError("decoder_crash", "the decoder died")
        self._buffer += data
