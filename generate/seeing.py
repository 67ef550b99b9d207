"""What a model is shown: pictures and frames of clips, sized as its training saw them, made into codes.

Codes depend on a picture's own pixels alone: pictures of one size go through the tokenizer together, no others, and
nothing is padded. Shapes: T frames, H W pixels, C colours, h w codes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.tokenize.preprocess import resize, target_size
from tokenmill.tokenize.vision import Codes, VisionTokenizer


@dataclass(frozen=True, kw_only=True)
class Area:
    """Sizes in pixels after resizing, as `target_size` takes them."""

    min_area: int
    max_area: int
    max_aspect: float


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A picture (T = 1), or a clip of whole windows, `frames` THWC, with what its document says of it."""

    frames: NDArray[np.uint8]
    fps: float | None = None
    seconds: float | None = None


def look_at(
    frames_THWC: NDArray[np.uint8] | None,
    seconds: Sequence[float],
    area: Area,
    vision: VisionTokenizer,
    fps: float | None = None,
) -> Seen:
    """Choose and resize frames for a tokenizer.

    One frame is a picture. Of a clip as many are taken, evenly spread, as fill the tokenizer's windows; `seconds` tell
    their rate unless `fps` does.

    Raises:
        SampleError: `no_picture`, `clip_too_short` for less than a window, `absurd_times`, and as `target_size` does.
    """
    if frames_THWC is None or not len(frames_THWC):
        raise SampleError("no_picture", "the model was given nothing to look at")
    limits = {"min_area": area.min_area, "max_area": area.max_area, "max_aspect": area.max_aspect}
    size = target_size(*frames_THWC.shape[1:3], **limits, multiple=vision.spatial_factor)  # type: ignore[arg-type]
    count = len(frames_THWC)
    if count == 1:
        return Seen(frames=resize(frames_THWC[0], size)[None])
    window = vision.temporal_factor
    taken = count // window * window
    if not taken:
        raise SampleError("clip_too_short", f"{count} frames; the model's tokenizer takes {window} and more")
    numbers = spread(count, taken)
    rate = round(fps or taken / _duration_s(seconds, count), 3)
    frames = np.stack([resize(frames_THWC[number], size) for number in numbers])
    return Seen(frames=frames, fps=rate, seconds=round(taken / rate, 3))


def spread(count: int, most: int) -> list[int]:
    """Choose up to `most` of `count` frames evenly: the middle one of each of equal parts."""
    taken = min(count, most)
    return [count * (2 * part + 1) // (2 * taken) for part in range(taken)]


def codes_of(seen: Sequence[Seen], vision: VisionTokenizer) -> list[Codes]:
    """Encode pictures and clips, (t, h, w) of each, those of one size and length together."""
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, one in enumerate(seen):
        alike[one.frames.shape].append(index)
    found: dict[int, Codes] = {}
    for shape, indexes in alike.items():
        frames_BTHWC = np.stack([seen[index].frames for index in indexes])
        if shape[0] == 1:
            codes_Bthw = vision.encode_images(frames_BTHWC[:, 0])[:, None]
        else:
            codes_Bthw = vision.encode_video(frames_BTHWC)
        found |= dict(zip(indexes, codes_Bthw, strict=True))
    return [found[index] for index in range(len(seen))]


def _duration_s(seconds: Sequence[float], count: int) -> float:
    """Return how long frames last that are seen at these times: each as long as it is to the next, on average."""
    spread = seconds[-1] - seconds[0] if len(seconds) == count else 0.0
    if not 0 < spread < float("inf"):
        raise SampleError("absurd_times", f"{count} frames of a clip without times that ascend")
    return spread * count / (count - 1)
