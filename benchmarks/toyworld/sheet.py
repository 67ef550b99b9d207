"""A picture of what the toy world looks like: scenes of each kind with a caption, and clips as strips of frames.

    python -m benchmarks.toyworld.sheet toyworld.png

The trade-off: 8 examples of each kind, held-out ones, enlarged without smoothing, so that pixels can be counted.
"""

from __future__ import annotations

import sys
import textwrap

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.toyworld.captions import captions, clip_captions
from benchmarks.toyworld.motion import draw_motion, motion
from benchmarks.toyworld.scenes import HELDOUT_SEEDS, KINDS, draw, scene
from benchmarks.toyworld.world import FRAMES, MOTION_KINDS, SIZE

_EVERY = 4  # frames of a clip that are shown: one a latent frame
_LETTER_PX, _LINE_PX, _LINES = 6, 12, 5


def sheet(scale: int = 4, columns: int = FRAMES // _EVERY) -> NDArray[np.uint8]:
    """Draw the sheet, a row for each kind of scene and of motion: HWC uint8."""
    seeds = range(HELDOUT_SEEDS, HELDOUT_SEEDS + 100 * columns)
    rows = []
    for kind, _ in KINDS:
        chosen = [made for made in map(scene, seeds) if made.kind == kind][:columns]
        rows.append([(draw(made), captions(made)[0]) for made in chosen])
    for number, moving in enumerate(MOTION_KINDS):
        made = motion(HELDOUT_SEEDS + number, kind=moving)
        frames = draw_motion(made, columns * _EVERY)[::_EVERY]
        rows.append([(frame, f"frame {n * _EVERY}" if n else clip_captions(made)[0]) for n, frame in enumerate(frames)])
    return np.concatenate([np.concatenate([cell(*one, scale) for one in row], axis=1) for row in rows])


def cell(pixels: NDArray[np.uint8], text: str, scale: int) -> NDArray[np.uint8]:
    """Draw a picture, enlarged, with a text below: HWC uint8, of one size for all."""
    side = SIZE * scale
    drawn = Image.new("RGB", (side + 8, side + 8 + _LINES * _LINE_PX), "white")
    drawn.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (4, 4))
    lines = textwrap.wrap(text, side // _LETTER_PX)[:_LINES]
    ImageDraw.Draw(drawn).multiline_text((4, side + 6), "\n".join(lines), fill="black", spacing=1)
    return np.asarray(drawn)


if __name__ == "__main__":
    Image.fromarray(sheet()).save(sys.argv[1])
