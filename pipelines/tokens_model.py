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
_REMEMBERED = 16  # pictures or windows


class SharedVision:
    """Encodes for whoever asks, in threads of its own.

    Args:
        cpus: cores of this worker; a model on another device is called once at a time.

    Attributes:
        at_once: pictures or windows of a call; calls: how many calls go on side by side.
        first: windows (B T H W C; a picture is one of T = 1) of the first calls, and their codes (B t h w);
            remembers: whether calls are still added to it.
    """

    def __init__(self, vision: VisionTokenizer, cpus: int = 1) -> None:
        self.vision = vision
        self._on_cpu = bool(getattr(vision, "on_cpu", False))
        self.at_once = 1 if self._on_cpu else vision.batch_size
        self.calls = max(1, cpus) if self._on_cpu else 1
        self._restore: Callable[[], None] | None = None
        self._pool = ThreadPoolExecutor(self.calls, "vision", self._begin if self._on_cpu else None)
        self.first: list[tuple[Pixels, Codes]] = []
        self.remembers = True
        self._lock = Lock()
        self._model_s = 0.0

    def images(self, images: Sequence[Pixels]) -> Future[list[Codes]]:
        """Return codes (h, w) of at most `at_once` pictures (H W C) of one size, when they are there."""
        batch = [*images, *[images[-1]] * (self.at_once - len(images))]
        return self._pool.submit(self._timed, lambda: self._images(np.stack(batch), len(images)))

    def windows(self, frames_THWC: Pixels) -> list[Future[Codes]]:
        """Return codes (t, h, w) of a clip's frames, a whole number of windows, piece by piece."""
        step = self.at_once * self.vision.temporal_factor
        parts = [frames_THWC[first : first + step] for first in range(0, len(frames_THWC), step)]
        return [self._pool.submit(self._timed, lambda part=part: self._windows(part)) for part in parts]

    def _images(self, batch_BHWC: Pixels, number: int) -> list[Codes]:
        codes = self.vision.encode_images(batch_BHWC)[:number]
        self._remember(batch_BHWC[:number, None], codes[:, None])
        return list(codes)

    def _windows(self, frames_THWC: Pixels) -> Codes:
        window = self.vision.temporal_factor
        missing = self.at_once - len(frames_THWC) // window
        filled = np.concatenate([frames_THWC, *[frames_THWC[-window:]] * missing])
        codes: Codes = self.vision.encode_video(filled[None])[0][: len(frames_THWC) // window]
        self._remember(frames_THWC.reshape(-1, window, *frames_THWC.shape[1:]), codes[:, None])
        return codes

    def _remember(self, windows_BTHWC: Pixels, codes: Codes) -> None:
        with self._lock:
            if self.remembers and sum(len(known) for known, _ in self.first) < _REMEMBERED:
                self.first.append((windows_BTHWC, codes))

    def compared(self, other: VisionTokenizer) -> tuple[int, int]:
        """Return how many codes the first calls gave, and for how many another tokenizer gives others."""
        number = changed = 0
        for windows_BTHWC, codes in self.first:
            still = windows_BTHWC.shape[1] == 1
            found = other.encode_images(windows_BTHWC[:, 0])[:, None] if still else _each(other, windows_BTHWC)
            number, changed = number + codes.size, changed + int((found != codes).sum())
        return number, changed

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


def _each(vision: VisionTokenizer, windows_BTHWC: Pixels) -> Codes:
    return np.stack([vision.encode_video(window[None])[0] for window in windows_BTHWC])
