"""What CLIP sees of a picture, made once for all scorers that share a model.

The scorers of a pass ask for the same square one after the other, so it is kept beside the picture for as long as that
lives; they then also send one array to the models instead of four (pickle writes an object of a chunk once).
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from tokenmill.filters.framing import Framing
from tokenmill.filters.picture import Image, Picture

_made: WeakKeyDictionary[Picture, dict[Framing, ClipPixels]] = WeakKeyDictionary()
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class ClipPixels:
    """The square (HWC uint8) and the 16 bytes that tell it from others."""

    pixels: Image
    digest: bytes


def clip_pixels(picture: Picture, framing: Framing) -> ClipPixels:
    """Return the square of a picture; raises SampleError where its view cannot be decoded."""
    with _lock:
        known = _made.setdefault(picture, {})
    if framing not in known:  # one thread looks at a picture at a time
        pixels = framing.frame(picture)
        known[framing] = ClipPixels(pixels, hashlib.blake2b(pixels.tobytes(), digest_size=16).digest())
    return known[framing]
