"""A picture of what a model drew: prompts of each kind with a picture, and clips that it went on with above the truth.

The first ones that were asked for, not chosen; enlarged without smoothing. The trade-off: eight of each kind show what
faults look like, shares are in the table.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.toyworld.exhibits import (
    CONTEXT,
    NEW,
    clips_of,
    extended_motions,
    opened,
    picture_prompts,
    pictures_of,
)
from benchmarks.toyworld.motion import draw_motion
from benchmarks.toyworld.sheet import cell
from benchmarks.toyworld.sizes import Size
from benchmarks.toyworld.world import MOTION_KINDS, PROMPT_KINDS

COLUMNS, SCALE = 8, 4
Frames = NDArray[np.uint8]


def write_shown(export: Path, drawn: Path, size: Size, target: Path) -> None:
    """Write the picture of a model's exhibits."""
    both = opened(export)
    asked, pictures = picture_prompts(size), pictures_of(drawn, both)
    rows = []
    for kind in PROMPT_KINDS:
        chosen = [n for n, prompt in enumerate(asked) if prompt.kind == kind and not prompt.unseen][:COLUMNS]
        rows.append([(pictures[n], asked[n].text) for n in chosen])
    motions, clips = extended_motions(size), clips_of(drawn, both)
    window = both.vision.temporal_factor
    for kind in MOTION_KINDS:
        number = next(n for n, made in enumerate(motions) if made.kind == kind)
        truth = draw_motion(motions[number], (CONTEXT + NEW) * window)
        gone_on = np.concatenate([truth[: CONTEXT * window], clips[number]])
        for frames, what in ((truth, "truth"), (gone_on, "model")):
            told = [f"{what}, frame {n * window}" if n < CONTEXT else f"{what}, {n * window}" for n in range(COLUMNS)]
            rows.append([(frames[n * window], told[n]) for n in range(COLUMNS)])
    lines = [_row(row) for row in rows]
    Image.fromarray(np.concatenate(lines)).save(target, optimize=True)


def _row(row: list[tuple[Frames, str]]) -> Frames:
    cells = [cell(pixels, text, SCALE) for pixels, text in row]
    blank = np.full_like(cells[0], 255)
    return np.concatenate([*cells, *[blank] * (COLUMNS - len(cells))], axis=1)
