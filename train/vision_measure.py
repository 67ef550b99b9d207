"""What a vision tokenizer is judged by: PSNR of each picture, averaged over pictures never trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tokenmill.demo.photographs import photographs
from tokenmill.demo.scenes import render, scene
from tokenmill.tokenize import picture_quality
from tokenmill.tokenize.preprocess import resize, target_size
from tokenmill.tokenize.vision_frames import embedded, latents, pixels
from tokenmill.train.vision_codebook import perplexity
from tokenmill.train.vision_data import HELDOUT_SEEDS, as_pixels

Pixels = NDArray[np.uint8]
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
            size = target_size(*picture.shape[:2], min_area=PHOTOGRAPH_AREA, max_area=PHOTOGRAPH_AREA, max_aspect=5.0)
            found[photograph.name] = resize(picture, size)
    return found


@torch.inference_mode()
def through(model: Any, picture: Pixels, *, quantized: bool = True) -> tuple[Pixels, torch.Tensor]:
    """Encode and decode one picture; without `quantized` the codebook is left out, to see what it costs."""
    found = latents(model, as_pixels([picture[None]]))
    codes = model.quantize(found)
    decoded = pixels(model, embedded(model, codes) if quantized else found, frames=1)[0, 0]
    return as_picture(decoded), codes


def as_picture(pixels_CHW: torch.Tensor) -> Pixels:
    """From -1..1 floats to an HWC uint8 picture."""
    scaled: Pixels = pixels_CHW.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return scaled


def measure(model: Any, *, scenes: int = 64) -> dict[str, float]:
    """Mean PSNR of held-out scenes and photographs, with and without the codebook, and the codebook's use."""
    sets: Mapping[str, Iterable[Pixels]] = {
        "scenes": heldout_scenes(scenes),
        "photographs": heldout_photographs().values(),
    }
    found = {}
    for name, pictures in sets.items():
        passed = [(picture, *through(model, picture)) for picture in pictures]
        whole = [(picture, through(model, picture, quantized=False)[0]) for picture in pictures]
        codes = torch.cat([codes.flatten() for _, _, codes in passed])
        found[f"psnr_{name}_db"] = mean(psnr_db(picture, back) for picture, back, _ in passed)
        found[f"psnr_{name}_unquantized_db"] = mean(psnr_db(picture, back) for picture, back in whole)
        found[f"perplexity_{name}"] = perplexity(codes, model.quantize.embedding.num_embeddings)
    return {name: round(value, 3) for name, value in found.items()}


def mean(values: Iterable[float]) -> float:
    """The plain mean, of at least one value."""
    listed = list(values)
    return sum(listed) / len(listed)
