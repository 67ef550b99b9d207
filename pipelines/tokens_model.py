"""The vision tokenizer as threads share it: what is encoded is a function of one picture or window, never of its batch.

A batch of another size rounds differently: in float32 on a CPU a picture alone and the same picture among others differ
by 5e-6 in their latents and in one code of some thousands. So every call has one shape. On a CPU that is one picture,
or one window of a clip, on one thread of torch, with as many calls side by side as the worker has cores: no slower
than batches (16 pictures of 128 x 128: 0.26 s one by one, 0.38 s as a batch, one thread), and there is no batch to wait
for. Elsewhere it is a batch of `batch_size`, filled up by repeating its last one, and one call at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RunError, TokenmillError
from tokenmill.tokenize.vision import VisionTokenizer

Pixels = NDArray[np.uint8]
Codes = NDArray[np.uint32]
T = TypeVar("T")


class SharedVision:
    """Encodes for whoever asks, in threads of its own.

    Args:
        cpus: cores of this worker; a model on another device is called once at a time.

    Attributes:
        at_once: pictures or windows of a call; calls: how many calls go on side by side.
    """

    def __init__(self, vision: VisionTokenizer, cpus: int = 1) -> None:
        self.vision = vision
        self._on_cpu = bool(getattr(vision, "on_cpu", False))
        self.at_once = 1 if self._on_cpu else vision.batch_size
        self.calls = max(1, cpus) if self._on_cpu else 1
        self._restore: Callable[[], None] | None = None
        self._pool = ThreadPoolExecutor(self.calls, "vision", self._begin if self._on_cpu else None)
        self._lock = Lock()
        self._model_s = 0.0

    def images(self, images: Sequence[Pixels]) -> Future[list[Codes]]:
        """Return codes (h, w) of at most `at_once` pictures (H W C) of one size, when they are there."""
        batch = [*images, *[images[-1]] * (self.at_once - len(images))]
        return self._pool.submit(self._timed, lambda: list(self.vision.encode_images(np.stack(batch))[: len(images)]))

    def windows(self, frames_THWC: Pixels) -> list[Future[Codes]]:
        """Return codes (t, h, w) of a clip's frames, a whole number of windows, piece by piece."""
        step = self.at_once * self.vision.temporal_factor
        parts = [frames_THWC[first : first + step] for first in range(0, len(frames_THWC), step)]
        return [self._pool.submit(self._timed, lambda part=part: self._windows(part)) for part in parts]

    def _windows(self, frames_THWC: Pixels) -> Codes:
        window = self.vision.temporal_factor
        missing = self.at_once - len(frames_THWC) // window
        filled = np.concatenate([frames_THWC, *[frames_THWC[-window:]] * missing])
        codes: Codes = self.vision.encode_video(filled[None])[0][: len(frames_THWC) // window]
        return codes

    def taken_s(self) -> float:
        """Return the seconds the model took since this was asked last, summed over threads."""
        with self._lock:
            taken, self._model_s = self._model_s, 0.0
        return taken

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._restore is not None:
            self._restore()

    def _timed(self, encode: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            return encode()
        except (TokenmillError, ImportError, MemoryError, OSError):
            raise
        except Exception as error:  # the model's fault, not the sample's
            raise RunError(f"the vision tokenizer failed: {type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                self._model_s += time.perf_counter() - started

    def _begin(self) -> None:
        """Give each thread one thread of torch: two of them round differently, and would share what cores there are."""
        import torch

        with self._lock:
            if self._restore is None:
                before = torch.get_num_threads()
                self._restore = lambda: torch.set_num_threads(before)
            torch.set_num_threads(1)
