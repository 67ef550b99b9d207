"""What is left of a picture after tokenizing: stored codes decoded again, beside the original at the same size.

The mean of the PSNR per picture is what a vision tokenizer is judged by (EMU3.md §2: 22.7 dB at 512²).
"""

from __future__ import annotations

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


_PIXELS_OF_A_CLIP = 4_000_000  # of four frames each: 27 windows of 192 x 192, 3 of 512 x 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A sample's first vision segment, decoded: frames (THWC), one of a picture, a clip's first few seconds."""

    key: str
    segment: VisionSegment
    frames: Pixels


def reconstruct(
    store: Store, archive: str, rows: Sequence[Mapping[str, Any]], vision: VisionTokenizer
) -> list[Decoded]:
    """Decode the codes of some index rows of one token archive; samples without vision are left out.

    Windows of a clip are coded independently, so its first ones can be looked at alone; how many hangs on their size.
    """
    found = []
    for row, sample in zip(rows, read_stored(store, archive, rows), strict=True):
        segment = next((s for s in sample.segments if isinstance(s, VisionSegment)), None)
        if segment is None:
            continue
        codes = sample.codes[segment.offset : segment.offset + segment.num_codes].astype(np.uint32)
        codes_THW = codes.reshape(segment.t, segment.h, segment.w)
        if segment.fps is None:
            frames = vision.decode_images(codes_THW)
        else:
            window = segment.h * segment.w * vision.spatial_factor**2 * vision.temporal_factor
            frames = vision.decode_video(codes_THW[None, : max(1, _PIXELS_OF_A_CLIP // window)])[0]
        found.append(Decoded(key=row["key"], segment=segment, frames=frames))
    return found


def fitted(original: Pixels, decoded: Pixels) -> Pixels:
    """Resize an original to the size at which it was tokenized."""
    return resize(original, decoded.shape[:2])
