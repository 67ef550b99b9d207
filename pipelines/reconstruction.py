"""What is left of a picture after tokenizing: stored codes decoded again, beside the original at the same size.

The mean of the PSNR per picture is what a vision tokenizer is judged by (EMU3.md §2: 22.7 dB at 512²).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import ManifestError
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.stored import read_stored
from tokenmill.tokenize.preprocess import resize
from tokenmill.tokenize.segments import VisionSegment
from tokenmill.tokenize.vision import VisionTokenizer

Pixels = NDArray[np.uint8]


_PIXELS_OF_A_RUN = 300_000  # what is decoded at once of a whole clip; at full width a pixel is some KB of activations
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
        frames = next(decoded_runs(segment, grid_of(segment, sample.codes, vision), vision, _PIXELS_OF_A_CLIP))
        found.append(Decoded(key=row["key"], segment=segment, frames=frames))
    return found


def grid_of(segment: VisionSegment, codes: NDArray[np.integer[Any]], vision: VisionTokenizer) -> NDArray[np.uint32]:
    """Return a segment's codes (t, h, w) of all codes of its sample.

    Raises ManifestError where there are too few, or some that the tokenizer does not have.
    """
    taken = codes[segment.offset : segment.offset + segment.num_codes]
    if len(taken) != segment.num_codes:
        raise ManifestError(f"a grid of {segment.t}×{segment.h}×{segment.w} at {segment.offset} of {len(codes)} codes")
    if int(taken.max()) >= vision.codebook_size:
        told = f"its codes reach {int(taken.max())}, the vision tokenizer's codebook has {vision.codebook_size}"
        raise ManifestError(f"{told}: another tokenizer made them")
    return taken.astype(np.uint32).reshape(segment.t, segment.h, segment.w)


def decoded_runs(
    segment: VisionSegment, codes_THW: NDArray[np.uint32], vision: VisionTokenizer, most_pixels: int = _PIXELS_OF_A_RUN
) -> Iterator[Pixels]:
    """Yield what codes decode to, THWC: a picture, or a clip in runs of frames that bound the memory."""
    if segment.fps is None:
        yield vision.decode_images(codes_THW)
        return
    window = segment.h * segment.w * vision.spatial_factor**2 * vision.temporal_factor
    at_once = max(1, most_pixels // window)
    for first in range(0, segment.t, at_once):
        yield vision.decode_video(codes_THW[None, first : first + at_once])[0]


def fitted(original: Pixels, decoded: Pixels) -> Pixels:
    """Resize an original to the size at which it was tokenized."""
    return resize(original, decoded.shape[:2])
