"""What is left of a picture after tokenizing: stored codes decoded again, beside the original at the same size.

The mean of the PSNR per picture is what a vision tokenizer is judged by (EMU3.md §2: 22.7 dB at 512²).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.manifests.storage import Store
from tokenmill.pipelines.stored import read_stored
from tokenmill.tokenize.preprocess import resize
from tokenmill.tokenize.segments import VisionSegment
from tokenmill.tokenize.vision import VisionTokenizer

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A sample's first vision segment, decoded: the picture, or the first frame of a clip's middle window (HWC).

    `frame` is that frame's number in the tokenized clip, 0 for a picture.
    """

    key: str
    segment: VisionSegment
    pixels: Pixels
    frame: int


def reconstruct(
    store: Store, archive: str, rows: Sequence[Mapping[str, Any]], vision: VisionTokenizer
) -> list[Decoded]:
    """Decode the codes of some index rows of one token archive; samples without vision are left out.

    Windows of a clip are coded independently, so one of them is enough to look at and costs a fraction of the clip.
    """
    found = []
    for row, sample in zip(rows, read_stored(store, archive, rows), strict=True):
        segment = next((s for s in sample.segments if isinstance(s, VisionSegment)), None)
        if segment is None:
            continue
        codes = sample.codes[segment.offset : segment.offset + segment.num_codes].astype(np.uint32)
        codes_THW = codes.reshape(segment.t, segment.h, segment.w)
        middle, frame = segment.t // 2, 0
        if segment.fps is None:
            pixels = vision.decode_images(codes_THW)[0]
        else:
            pixels = vision.decode_video(codes_THW[None, middle : middle + 1])[0, 0]
            frame = middle * vision.temporal_factor
        found.append(Decoded(key=row["key"], segment=segment, pixels=pixels, frame=frame))
    return found


def fitted(original: Pixels, decoded: Pixels) -> Pixels:
    """Resize an original to the size at which it was tokenized."""
    return resize(original, decoded.shape[:2])


def psnr(one: Pixels, two: Pixels) -> float:
    """Return the peak signal-to-noise ratio of two pictures in dB; infinite for equal ones."""
    error = float(np.mean((one.astype(np.float64) - two.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
