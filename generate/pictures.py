"""From the ids of a document to pixels: find its vision strings, check them, decode their codes.

Reads the grid off the ids themselves (rows end in EOL, frames in EOF) and compares it with the meta text, so that a
document which left the grammar is refused instead of being shown as a shifted picture.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.tokenize.vocabulary import Vocabulary

_NUMBER = r"(\d+(?: *\. *\d+)?(?:e[+-]\d+)?)"
# Tokenizers of whole words put blanks between all that they decode.
_META = re.compile(rf" *(\d+) *\* *(\d+)(?: +{_NUMBER} *fps +{_NUMBER} *s)? *")


class CodesDecoder(Protocol):
    """The half of a vision tokenizer that turns codes into pixels."""

    def decode_images(self, codes_Bhw: NDArray[np.uint32], /) -> NDArray[np.uint8]: ...

    def decode_video(self, codes_Bthw: NDArray[np.uint32], /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, slots=True)
class PictureCodes:
    """Codes (t, h, w) of one image, or of one clip when `fps` and `seconds` are set."""

    codes_thw: NDArray[np.uint32]
    fps: float | None = None
    seconds: float | None = None


def parse_pictures(ids: Sequence[int] | NDArray[np.int32], vocabulary: Vocabulary) -> list[PictureCodes]:
    """Find every `SOV meta SOT … EOV` of a document; raises SampleError (`off_grammar`) for a broken one."""
    values = np.asarray(ids, np.int64)
    starts, ends = np.flatnonzero(values == vocabulary.sov), np.flatnonzero(values == vocabulary.eov)
    if len(starts) != len(ends) or np.any(ends < starts) or np.any(starts[1:] < ends[:-1]):
        raise SampleError("off_grammar", f"{len(starts)} vision strings start and {len(ends)} end")
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    return [_parse_picture(values[start + 1 : end], vocabulary) for start, end in spans]


def decode_ids(
    ids: Sequence[int] | NDArray[np.int32], vocabulary: Vocabulary, vision: CodesDecoder
) -> list[NDArray[np.uint8]]:
    """Give every picture of a document as (H, W, 3) uint8, a clip as its frames one by one."""
    frames: list[NDArray[np.uint8]] = []
    for picture in parse_pictures(ids, vocabulary):
        if picture.fps is None:
            frames += list(vision.decode_images(picture.codes_thw))
        else:
            frames += list(vision.decode_video(picture.codes_thw[None])[0])
    return frames


def save_png(path: str | Path | IO[bytes], image: NDArray[np.uint8], text: dict[str, str] | None = None) -> None:
    """Write (H, W, 3) uint8 as PNG, with `text` (prompt, seed, …) in its metadata; the same input, the same bytes."""
    from PIL import Image, PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    for key, value in sorted((text or {}).items()):
        chunks.add_itxt(key, value)
    Image.fromarray(image).save(path, format="PNG", pnginfo=chunks)


def _parse_picture(inner: NDArray[np.int64], vocabulary: Vocabulary) -> PictureCodes:
    """Read `meta SOT rows frames`, everything between SOV and EOV."""
    sot = np.flatnonzero(inner == vocabulary.sot)
    if len(sot) != 1 or np.any(inner[: sot[0]] >= vocabulary.text.size):
        raise SampleError("off_grammar", "a vision string needs its meta text and one start of codes")
    meta = vocabulary.text.decode(inner[: sot[0]].tolist())
    said = _META.fullmatch(meta)
    if said is None:
        raise SampleError("off_grammar", f"meta {meta!r} is not a grid")
    h, w = int(said[1]), int(said[2])
    grid, seconds = inner[sot[0] + 1 :], _number(said[4])
    if h * w == 0 or len(grid) == 0 or len(grid) % (h * (w + 1) + 1):
        raise SampleError("off_grammar", f"{len(grid)} ids are not frames of {meta!r}")
    frames, fps = grid.reshape(-1, h * (w + 1) + 1), _number(said[3])
    if fps is None and len(frames) > 1:
        raise SampleError("off_grammar", f"an image {meta!r} has {len(frames)} frames")
    return PictureCodes(_codes(frames, h, w, vocabulary), fps, seconds)


def _number(text: str | None) -> float | None:
    return float(text.replace(" ", "")) if text else None


def _codes(frames: NDArray[np.int64], h: int, w: int, vocabulary: Vocabulary) -> NDArray[np.uint32]:
    rows = frames[:, :-1].reshape(len(frames), h, w + 1)
    codes = rows[..., :w] - vocabulary.vision_base
    in_place = np.all(frames[:, -1] == vocabulary.eof) and np.all(rows[..., w] == vocabulary.eol)
    if not in_place or codes.min() < 0 or codes.max() >= vocabulary.codebook_size:
        raise SampleError("off_grammar", f"a grid of {h}×{w} has markers or codes out of place")
    return codes.astype(np.uint32)
