"""What the tokenizer leaves to be won: true scenes and clips encoded, decoded, and judged as the model's own are.

No model that draws with this tokenizer can be read right more often than the truth that went through it, but for luck.
True scenes are the world's own, recast to what each prompt wants: same places, sizes and light as in training. Beside
the judge's score stand PSNR and SSIM, which do not tell a lost corner (a square read as a circle) from lost grain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from benchmarks.toyworld.judge_motion_scores import MotionScore, score_motions
from benchmarks.toyworld.judge_pixels import Pixels
from benchmarks.toyworld.judge_scores import Score, score_pictures
from benchmarks.toyworld.motion import draw_motion
from benchmarks.toyworld.scenes import HELDOUT_SEEDS, draw, scene
from benchmarks.toyworld.world import COLOURS, Motion, Prompt, Wanted
from tokenmill.demo.world import Scene, Thing, relation
from tokenmill.tokenize.picture_quality import psnr_db, ssim
from tokenmill.tokenize.vision import VisionTokenizer

AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How near reconstructions are to their originals: means over pictures, or over the frames of clips."""

    psnr_db: float
    ssim: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """Describe it for a machine."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureCeiling:
    """Scores of true scenes as they are drawn (the judge's own mistakes) and after the tokenizer (the ceiling)."""

    quality: Quality
    drawn: list[Score]
    decoded: list[Score]


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionCeiling:
    """The same of clips: the frames that follow a context."""

    quality: Quality
    drawn: list[MotionScore]
    decoded: list[MotionScore]


def picture_ceiling(prompts: Sequence[Prompt], vision: VisionTokenizer) -> PictureCeiling:
    """Draw a true scene for each prompt and judge it before and after the tokenizer."""
    drawn = np.stack([draw(true_scene(prompt, number)) for number, prompt in enumerate(prompts)])
    parts = [drawn[start : start + AT_ONCE] for start in range(0, len(drawn), AT_ONCE)]
    decoded = np.concatenate([vision.decode_images(vision.encode_images(part)) for part in parts])
    return PictureCeiling(
        quality=quality(drawn, decoded),
        drawn=score_pictures(prompts, list(drawn)),
        decoded=score_pictures(prompts, list(decoded)),
    )


def motion_ceiling(motions: Sequence[Motion], vision: VisionTokenizer, first: int, num_frames: int) -> MotionCeiling:
    """Draw the true frames after a context and follow their things before and after the tokenizer.

    Raises ValueError for frames that do not fill the tokenizer's windows.
    """
    window = vision.temporal_factor
    if first % window or num_frames % window:
        raise ValueError(f"frames {first} to {first + num_frames} do not fill windows of {window}")
    drawn = np.stack([draw_motion(made, num_frames, first=first) for made in motions])
    few = max(1, AT_ONCE * window // num_frames)
    parts = [drawn[start : start + few] for start in range(0, len(drawn), few)]
    decoded = np.concatenate([vision.decode_video(vision.encode_video(part)) for part in parts])
    return MotionCeiling(
        quality=quality(drawn.reshape(-1, *drawn.shape[2:]), decoded.reshape(-1, *decoded.shape[2:])),
        drawn=score_motions(motions, list(drawn), first),
        decoded=score_motions(motions, list(decoded), first),
    )


def quality(drawn_BHWC: Pixels, decoded_BHWC: Pixels) -> Quality:
    """Compare pictures one by one."""
    decibels = [psnr_db(one, other) for one, other in zip(drawn_BHWC, decoded_BHWC, strict=True)]
    return Quality(
        psnr_db=float(np.mean(decibels)), ssim=float(ssim(drawn_BHWC, decoded_BHWC).mean()), n=len(drawn_BHWC)
    )


def true_scene(prompt: Prompt, number: int) -> Scene:
    """Return a scene that shows exactly what a prompt wants: one of the world's, held out, with other things in it."""
    wanted = [one for group in prompt.wanted for one in [group] * group.count]
    kinds = ("single",) if len(wanted) == 1 else ("group",) if len(prompt.wanted) == 1 else ("pair", "mixed")
    for seed in count(HELDOUT_SEEDS + number * 1_000):
        made = scene(seed)
        if made.kind not in kinds or len(made.objects) != len(wanted):
            continue
        if prompt.background not in (None, made.background):
            continue
        things = made.objects
        if prompt.relation is None or relation(things[0], things[1]) == prompt.relation:
            return replace(made, objects=tuple(map(_recast, things, wanted)))
    raise AssertionError("seeds do not end")


def _recast(thing: Thing, wanted: Wanted) -> Thing:
    """Give a thing the shape and colour that are wanted, as far off the named colour as it was off its own."""
    colour = wanted.colour or thing.colour
    red, green, blue = (
        int(np.clip(new + own - old, 0, 255))
        for new, own, old in zip(COLOURS[colour], thing.rgb, COLOURS[thing.colour], strict=True)
    )
    return replace(thing, shape=wanted.shape, colour=colour, rgb=(red, green, blue))
