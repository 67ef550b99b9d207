"""What a vision tokenizer is trained on: scenes, photograph crops and 4-frame windows.

A batch is a pure function of the recipe and the step, so a resumed run sees what an uninterrupted one would have.
Photographs lie in memory at several sizes (a 5-megapixel picture and its 128-pixel miniature are both in
distribution): about 3 MB a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tokenmill.demo.scenes import motion, render, render_motion, scene
from tokenmill.tokenize.vision_frames import WINDOW
from tokenmill.train.vision_recipe import Batches

Pixels = NDArray[np.uint8]

SHORT_SIDES = (96, 128, 192, 256, 384, 512)
TRAINING_SEEDS = 5_000_000
"""Scenes to train on have seeds from here up; the demo uses 0 and 1,000,000,000 upwards, measuring HELDOUT_SEEDS."""
HELDOUT_SEEDS = 4_000_000
CLIP_FRAMES = 24


@dataclass(frozen=True, slots=True)
class Pool:
    """All photographs (each at several sizes, HWC) and clips (THWC, windows one after the other) a run draws from."""

    photographs: tuple[tuple[Pixels, ...], ...]
    clips: tuple[Pixels, ...] = ()


def pyramid(picture: Pixels) -> tuple[Pixels, ...]:
    """The picture at every short side of SHORT_SIDES that it has pixels for."""
    height, width = picture.shape[:2]
    sizes = [side / min(height, width) for side in SHORT_SIDES if side <= min(height, width)]
    image = Image.fromarray(picture)
    return tuple(
        np.asarray(image.resize((round(width * by), round(height * by)), Image.Resampling.BICUBIC)) for by in sizes
    )


def batch(pool: Pool, settings: Batches, *, seed: int, step: int) -> torch.Tensor:
    """The pixels of one step, (B, T, C, H, W) in -1..1; T is 1, or 4 in a step of windows."""
    rng = np.random.default_rng([seed, step])
    kind = rng.random()
    if kind < settings.windows:
        return as_pixels([_window(pool, settings, rng) for _ in range(settings.pictures // WINDOW)])
    times = _times(settings, kind - settings.windows)
    if times > 1 and pool.photographs:
        count, side = settings.pictures // times**2, settings.side * times
        return as_pixels([_crop(pool, settings, side, rng)[None] for _ in range(count)])
    drawn = [_picture(pool, settings, rng) for _ in range(settings.pictures)]
    return as_pixels([picture[None] for picture in drawn])


def _times(settings: Batches, kind: float) -> int:
    """How many times `side` the crops of a step are; so many fewer that every step costs the same.

    Trained on small crops alone, a network mistakes the colours of whole pictures: its norms and attention span them
    (measured: 20.7 dB for a photograph as a whole, 26.7 dB for the same cut into 64-pixel tiles).
    """
    return 4 if kind < settings.largest else 2 if kind < settings.largest + settings.large else 1


def as_pixels(pictures_THWC: Sequence[Pixels]) -> torch.Tensor:
    """Stack equal uint8 pictures into (B, T, C, H, W) floats in -1..1."""
    stacked = torch.from_numpy(np.stack(pictures_THWC)).permute(0, 1, 4, 2, 3)
    return stacked.float().div_(127.5).sub_(1.0).contiguous()


def _picture(pool: Pool, settings: Batches, rng: np.random.Generator) -> Pixels:
    if rng.random() < settings.scenes or not pool.photographs:
        return render(scene(_seed(rng)), settings.side)
    return _crop(pool, settings, settings.side, rng)


def _window(pool: Pool, settings: Batches, rng: np.random.Generator) -> Pixels:
    """Four frames in a row: of a moving scene, or a crop of a clip."""
    if rng.random() < settings.moving or not pool.clips:
        start = int(rng.integers(CLIP_FRAMES - WINDOW + 1))
        return render_motion(motion(_seed(rng)), CLIP_FRAMES, settings.side)[start : start + WINDOW]
    clip = pool.clips[rng.integers(len(pool.clips))]
    start = WINDOW * int(rng.integers(len(clip) // WINDOW))
    rows, columns = (_span(length, settings.side, rng) for length in clip.shape[1:3])
    return _turned(clip[start : start + WINDOW, rows, columns], settings, rng)


def _crop(pool: Pool, settings: Batches, side: int, rng: np.random.Generator) -> Pixels:
    """A crop of a photograph, at one of its sizes that has room for it."""
    able = [sizes for sizes in pool.photographs if min(sizes[-1].shape[:2]) >= side]
    fitting = [size for size in able[rng.integers(len(able))] if min(size.shape[:2]) >= side]
    picture = fitting[rng.integers(len(fitting))]
    rows, columns = (_span(length, side, rng) for length in picture.shape[:2])
    return _turned(picture[rows, columns], settings, rng)


def _turned(crop: Pixels, settings: Batches, rng: np.random.Generator) -> Pixels:
    """Mirror, turn upside down or transpose, and shift the colours of some."""
    if rng.random() < 0.5:
        crop = crop[..., ::-1, :]
    if rng.random() < 0.15:
        crop = crop[..., ::-1, :, :]
    if rng.random() < 0.15:
        crop = crop.swapaxes(-3, -2)
    if rng.random() < settings.recolour:
        gain, offset = rng.uniform(0.7, 1.3) * rng.uniform(0.85, 1.15, 3), rng.uniform(-25, 25)
        crop = np.clip((crop - 128.0) * gain + 128.0 + offset, 0, 255).astype(np.uint8)
    return crop


def _span(length: int, side: int, rng: np.random.Generator) -> slice:
    start = int(rng.integers(length - side + 1))
    return slice(start, start + side)


def _seed(rng: np.random.Generator) -> int:
    return TRAINING_SEEDS + int(rng.integers(900_000_000))
