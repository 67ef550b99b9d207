"""64-bit hash of a whole clip: near copies (coded, scaled or timed anew, a frame or two shorter) differ in few bits.

Eight moments, spread evenly from the clip's beginning to 1/fps before its end (the last that sampling surely shows) and
blended from the frames beside them, become 32 x 32 luma. Of their 3-D DCT the lowest frequencies are one bit each: 32
of the mean picture (above their median or not), 16 of its first and 16 of its second change in time (above a level that
coding noise does not reach, so that a still is the same still every time). The column is that of `perceptual_hash`:
stage `duplicates` compares it by `max_distance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from tokenmill.filters.clip import Clip
from tokenmill.filters.scorer import Columns, fingerprint_of

_MOMENTS, _SIDE_PX, _LOW = 8, 32, 8
_BITS = (32, 16, 16)  # of the mean picture, its first and its second change in time
_CHANGE = 16.0  # a pattern that grows and shrinks by some 1.4 levels
_FLAT = 1.0  # standard deviation of 32 x 32 luma, in levels
_ORDER = sorted(np.ndindex(_LOW, _LOW), key=lambda place: (sum(place), place))  # lowest frequencies first

_Moments = NDArray[np.float32]  # T H W


@dataclass(frozen=True, kw_only=True)
class ClipHash:
    """The hash as an unsigned 64-bit number; null where no frame has structure, as in black or blank clips."""

    name: ClassVar = "clip_hash"
    version: ClassVar = 1
    takes: ClassVar[Literal["video"]] = "video"
    batch_size: ClassVar = 1
    columns: ClassVar = {"phash": pl.UInt64()}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[Clip]) -> Columns:
        """Hash clips one by one."""
        return {"phash": [clip_hash(clip) for clip in batch]}


def clip_hash(clip: Clip) -> int | None:
    """Hash one clip; None when it has no structure to hash."""
    small = np.stack([_small(frame) for frame in clip.frames])
    if small.std(axis=(1, 2)).max() < _FLAT:
        return None
    mean, *changes = _frequencies(_moments(small, clip.seconds, clip.duration_s - 1 / clip.fps))
    values = [mean[place] for place in _ORDER[1 : _BITS[0] + 1]]  # the first one is the brightness
    bits = [*(np.array(values) > np.median(values))]
    for count, change in zip(_BITS[1:], changes, strict=True):
        bits += [change[place] > _CHANGE for place in _ORDER[:count]]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _small(frame: NDArray[np.uint8]) -> _Moments:
    import cv2

    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    small: _Moments = cv2.resize(grey, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    return small


def _moments(small: _Moments, seconds: NDArray[np.float64], span_s: float) -> _Moments:
    """Blend frames into what is shown at the middles of equal parts of the first `span_s` of the clip."""
    at = (np.arange(_MOMENTS) + 0.5) / _MOMENTS * max(span_s, 0.0)
    places = np.interp(at, seconds, np.arange(len(small)))
    before = places.astype(int)
    share = (places - before)[:, None, None].astype(np.float32)
    blended: _Moments = (1 - share) * small[before] + share * small[np.minimum(before + 1, len(small) - 1)]
    return blended


def _frequencies(moments: _Moments) -> _Moments:
    """Return the low corner of the 3-D DCT, as large in time as there are bits for; orthonormal in space."""
    import cv2

    spatial: _Moments = np.stack([cv2.dct(moment)[:_LOW, :_LOW] for moment in moments])
    angles = np.pi * np.outer(np.arange(len(_BITS)), 2 * np.arange(_MOMENTS) + 1) / (2 * _MOMENTS)
    waves = np.cos(angles) * np.sqrt([[1], *[[2]] * (len(_BITS) - 1)]) / _MOMENTS
    frequencies: _Moments = np.einsum("kt,tyx->kyx", waves.astype(np.float32), spatial)
    return frequencies
