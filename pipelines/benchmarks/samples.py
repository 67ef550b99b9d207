"""What a benchmark's samples have that other drawings lack: a seed by prompt and number, and grids of several."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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
