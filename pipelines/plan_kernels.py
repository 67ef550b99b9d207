"""Compiled loops of planning a window, over all its documents or pieces at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenmill.compiled import compiled


@compiled
def choose(
    keys: NDArray[np.int64],
    positions: NDArray[np.float64],
    offsets: NDArray[np.int64],
    edges: NDArray[np.float64],
    outcomes: NDArray[np.int32],
) -> NDArray[np.int32]:
    """Give each row the outcome whose stretch holds its position; key k has the edges [offsets[k], offsets[k + 1])."""
    chosen = np.empty(len(keys), np.int32)
    for row in range(len(keys)):
        place, last = offsets[keys[row]], offsets[keys[row] + 1] - 1
        while place < last and positions[row] >= edges[place]:
            place += 1
        chosen[row] = outcomes[place]
    return chosen


@compiled
def count_losses(
    layouts: NDArray[np.int64],
    starts: NDArray[np.int32],
    lengths: NDArray[np.int32],
    offsets: NDArray[np.int64],
    span_length: NDArray[np.int32],
    span_loss: NDArray[np.uint8],
) -> NDArray[np.int64]:
    """Count each piece's ids by loss class, (pieces, 3); its first has no context and is counted under none (0)."""
    counts = np.zeros((len(layouts), 3), np.int64)
    for piece in range(len(layouts)):
        start = starts[piece]
        end = start + lengths[piece]
        position = 0
        for span in range(offsets[layouts[piece]], offsets[layouts[piece] + 1]):
            behind = position + span_length[span]
            overlap = min(behind, end) - max(position, start)
            if overlap > 0:
                first = 1 if position <= start < behind else 0
                counts[piece, span_loss[span]] += overlap - first
                counts[piece, 0] += first
            position = behind
            if position >= end:
                break
    return counts
