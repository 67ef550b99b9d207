"""A vision tokenizer as a third party writes one, without torch: mean brightness of patches; says what it encoded.

Every picture or window that it is given goes to `log` as a line with its digest, so a test can count the distinct ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenmill.tokenize import vision

NAME, WHERE = "counted", "tests.counted_vision:CountedVision"
Pixels = NDArray[np.uint8]
Codes = NDArray[np.uint32]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the tokenizer known in this process while a test runs."""
    monkeypatch.setitem(vision.BUILT_IN, NAME, WHERE)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class CountedVision:
    log: str
    batch_size: int = 4
    device: str = "cpu"
    codebook_size = 256
    spatial_factor, temporal_factor = 8, 4
    fingerprint = "brightness of patches"

    def encode_images(self, images_BHWC: Pixels) -> Codes:
        assert len(images_BHWC) == self.batch_size
        return self._codes(images_BHWC[:, None])[:, 0]

    def encode_video(self, frames_BTHWC: Pixels) -> Codes:
        batch, frames, *rest = frames_BTHWC.shape
        windows = frames_BTHWC.reshape(batch * frames // 4, 4, *rest)
        assert len(windows) == self.batch_size
        codes = self._codes(windows)
        return codes.reshape(batch, -1, *codes.shape[2:])

    def _codes(self, windows_BTHWC: Pixels) -> Codes:
        digests = [hashlib.sha256(window.tobytes()).hexdigest() for window in windows_BTHWC]
        with Path(self.log).open("a") as file:
            file.write("".join(f"{digest}\n" for digest in digests))
        batch, frames, height, width, _ = windows_BTHWC.shape
        patches = windows_BTHWC.reshape(batch, frames, height // 8, 8, width // 8, 8, 3)
        codes: Codes = patches.mean(axis=(1, 3, 5, 6))[:, None].astype(np.uint32)
        return codes

    def decode_images(self, codes_Bhw: Codes) -> Pixels:
        raise NotImplementedError

    def decode_video(self, codes_Bthw: Codes) -> Pixels:
        raise NotImplementedError


def encoded(log: Path) -> int:
    """Return how many distinct pictures and windows were encoded since this was asked last."""
    lines = set(log.read_text().splitlines()) if log.exists() else set()
    log.unlink(missing_ok=True)
    return len(lines)
