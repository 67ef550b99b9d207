"""What a benchmark's files are made of: seeds, grids, and pictures that tell how they were drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from tokenmill.generate.pictures import save_png

Pixels = NDArray[np.uint8]


def seed_of(seed: int, name: str, sample: int) -> int:
    """Return the seed of a sample (48 bits): of these three alone, so that a part of a benchmark is the whole's."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}\0{sample}".encode()).digest()[:6], "big")


def grid_of(pictures: Sequence[Pixels]) -> Pixels:
    """Put pictures (H, W, 3) of one size two in a row; what is missing of the last row is black."""
    if len(pictures) == 1:
        return pictures[0]
    full = [*pictures, *[np.zeros_like(pictures[0])] * (len(pictures) % 2)]
    rows = [np.concatenate(full[first : first + 2], axis=1) for first in range(0, len(full), 2)]
    return np.concatenate(rows)


def png(pictures: Sequence[Pixels], told: Mapping[str, str]) -> bytes:
    """Return a picture, or several as a grid, with what is told in its metadata."""
    buffer = BytesIO()
    save_png(buffer, grid_of(pictures), dict(told))
    return buffer.getvalue()
