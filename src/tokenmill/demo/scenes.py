"""The scene renderer's front door: a seed becomes a picture, its captions and its exact description.

    picture = render(scene(7), 64)          # HWC uint8
    wording = captions(scene(7))            # "a small red circle left of ..."
    frames = render_motion(motion(7), 48)   # THWC uint8

One trade-off: pictures so simple that a 3 M parameter model learns them on a laptop, hence no test of realism.
"""

from tokenmill.demo.drawing import render, render_motion
from tokenmill.demo.staging import HELDOUT_SEEDS, motion, scene
from tokenmill.demo.wording import captions
from tokenmill.demo.world import BACKGROUNDS, COLOURS, SHAPES, Group, Scene, Thing

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "HELDOUT_SEEDS",
    "SHAPES",
    "Group",
    "Scene",
    "Thing",
    "captions",
    "motion",
    "render",
    "render_motion",
    "scene",
]
