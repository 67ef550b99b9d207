"""What a vision tokenizer is judged by while it trains: PSNR and SSIM of pictures never trained on.

Each picture counts once, whatever its size. `tokenmill evaluate tokenizer` measures more, and elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tokenmill.demo.photographs import photographs
from tokenmill.demo.scenes import render, scene
from tokenmill.errors import SampleError
from tokenmill.settings_tokenizer import TokenizerTraining
from tokenmill.tokenize import picture_quality
from tokenmill.tokenize.preprocess import resize, target_size
from tokenmill.tokenize.vision_frames import WINDOW, embedded, latents, nearest_codes, pixels
from tokenmill.train.vision_codebook import summed
from tokenmill.train.vision_data import as_pixels
from tokenmill.train.vision_samples import Samples

Pixels = NDArray[np.uint8]
HELDOUT_SEEDS = 4_000_000
"""Scenes from here on measure; training takes others (the demo's have seeds from 0 and 1,000,000,000 on)."""
PHOTOGRAPH_AREA = 256 * 256
"""Held-out photographs are measured whole, at about this many pixels: the size at which the demo tokenizes them."""
SCENE_SIDE = 64


def psnr_db(reference: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio of one uint8 picture, in dB; equal pictures count as 99."""
    return min(99.0, picture_quality.psnr_db(reference, other))


def heldout_scenes(count: int = 64) -> list[Pixels]:
    """Scenes from seeds that training never draws."""
    return [render(scene(HELDOUT_SEEDS + index), SCENE_SIDE) for index in range(count)]


def heldout_photographs() -> dict[str, Pixels]:
    """The demo's held-out photographs, whole, at about PHOTOGRAPH_AREA with sides that are multiples of 8."""
    found = {}
    for photograph in photographs():
        if photograph.heldout:
            with Image.open(photograph.path) as image:
                picture = np.asarray(image.convert("RGB"))
            size = target_size(
                *picture.shape[:2], min_area=PHOTOGRAPH_AREA, max_area=PHOTOGRAPH_AREA, max_aspect=5.0, multiple=8
            )
            found[photograph.name] = resize(picture, size)
    return found


def measure(model: Any, samples: Samples, settings: TokenizerTraining, *, rank: int, ranks: int) -> dict[str, float]:
    """Mean PSNR and SSIM of the held-out part, shared out over the ranks; nothing where there is none."""
    figures: dict[str, float] = {}
    codes = torch.zeros(model.config.codebook_size, dtype=torch.float64, device=model.device)
    for name, clips in (("", False), ("_video", True)):
        rows = samples.held_out_rows(clips=clips)[: settings.measure_samples]
        sums = torch.zeros(3, dtype=torch.float64, device=model.device)
        for picture in _held_out(samples, rows[rank::ranks], settings, clips=clips):
            back, used = through(model, picture)
            sums += torch.tensor(
                [psnr_db(picture, back), float(picture_quality.ssim(picture, back).mean()), 1.0], dtype=torch.float64
            ).to(sums)
            codes += torch.bincount(used.flatten(), minlength=len(codes))
        psnr, similarity, count = summed(sums).tolist()
        if count:
            figures |= {f"psnr{name}_db": round(psnr / count, 3), f"ssim{name}": round(similarity / count, 4)}
    if figures:
        share = summed(codes) / codes.sum()
        figures["heldout_perplexity"] = round(float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum())), 1)
    return figures


def _held_out(samples: Samples, rows: Iterable[int], settings: TokenizerTraining, *, clips: bool) -> Iterator[Pixels]:
    """Yield pictures (1, H, W, C), or first windows of clips; what cannot be read is left out."""
    area = settings.measure_area
    for row in rows:
        try:
            if clips:
                found = samples.first_window(row, WINDOW, math.isqrt(area))
            else:
                found = samples.picture(row)[None]
            size = target_size(*found.shape[1:3], min_area=64, max_area=area, max_aspect=math.inf, multiple=8)
        except SampleError:
            continue
        if min(size) < picture_quality.WINDOW_PX:
            continue
        yield np.stack([resize(frame, size) for frame in found])


@torch.inference_mode()
def through(model: Any, picture_THWC: Pixels) -> tuple[Pixels, torch.Tensor]:
    """Encode and decode a picture (T = 1) or a window (T = 4); returns what came back, and its codes."""
    codes = nearest_codes(model, latents(model, as_pixels([picture_THWC]).to(model.device)))
    decoded = pixels(model, embedded(model, codes), frames=len(picture_THWC))[0]
    return np.stack([as_picture(frame) for frame in decoded]), codes


def as_picture(pixels_CHW: torch.Tensor) -> Pixels:
    """From -1..1 floats to an HWC uint8 picture."""
    scaled = pixels_CHW.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    picture: Pixels = scaled.permute(1, 2, 0).cpu().numpy()
    return picture


def mean(values: Iterable[float]) -> float:
    """The plain mean, of at least one value."""
    listed = list(values)
    return sum(listed) / len(listed)
