"""Files spoiled on purpose: what a run on the open web meets, small enough to lie in a demo.

Each is made here as bytes and recorded as a `Spoiled`, so that a run can be held to it: every one must end as a failed
or a dropped row with a reason of its own. The picture bomb is 68 bytes that ask for 10.8 GB of pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Outcome = Literal["failed", "dropped"]
BOMB_SIDE_PX = 60_000
NOT_A_PICTURE = b"This file is named like a picture or a clip, but it is a line of text.\n" * 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoiled:
    """One file or sample spoiled on purpose.

    `name` is a sample's key in a WebDataset, a file's relative path elsewhere, and for JSONL `file#offset`: in each
    case the key under which ingest knows it.
    `twin` names the good one of a duplicate: either of the two may be the one that is dropped.
    """

    source: str
    name: str
    what: str
    expected: Outcome
    expected_reason_hint: str
    twin: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Describe it as `spoiled.json` does."""
        return asdict(self)


def cut_off(data: bytes, share: float = 0.6) -> bytes:
    """Return the first part of a file, as a broken download leaves it."""
    return data[: int(len(data) * share)]


def bomb_png(side_px: int = BOMB_SIDE_PX) -> bytes:
    """Return a tiny PNG whose header claims `side_px` squared RGB pixels; its checksums hold, its data is missing."""
    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(b"\0" * 16)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def screenshot(lines: Sequence[str], width: int = 430, height: int = 360) -> NDArray[np.uint8]:
    """Draw lines of text over the whole picture, like a page on a screen: HWC uint8."""
    picture = Image.new("RGB", (width, height), (250, 250, 252))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, width, 26), fill=(60, 90, 160))
    font = ImageFont.load_default(20)
    for row, line in enumerate(lines):
        draw.text((8, 32 + 25 * row), line, font=font, fill=(20, 20, 24))
    return np.asarray(picture)


def monochrome(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the same picture in grey levels, still with three channels."""
    return np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))


def resized(pixels: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """Return a slightly larger or smaller copy, as it comes from another site."""
    picture = Image.fromarray(pixels)
    return np.asarray(picture.resize((round(picture.width * share), round(picture.height * share))))


def encoded(pixels: NDArray[np.uint8], extension: str, quality: int = 95) -> bytes:
    """Encode a picture as `jpg` (with full colour resolution) or `png`."""
    stream = BytesIO()
    if extension == "jpg":
        Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=0)
    else:
        Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
