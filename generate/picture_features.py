"""What pictures look like to a network, by the path of its weights: features for a Fréchet distance, and LPIPS.

No weights are in this repository and none are fetched. A file is the FID's Inception (pytorch-fid's layout, safetensors
or what `torch.load(weights_only=True)` reads), a folder any image encoder of transformers with its preprocessor.

Shapes: B pictures, H W pixels, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.tensor_file import read_tensors
from tokenmill.tokenize.loading import without_progress_bar

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """`measure` gives features (B, D) float64 of pictures BHWC; `name` says whose, `is_fid` whether they are FID's."""

    name: str
    is_fid: bool
    measure: Callable[[Pixels], NDArray[np.float64]]


def open_features(path: str | Path, device: str = "cpu") -> Features:
    """Open a feature network; raises RecipeError where there is none at the path or its weights do not fit."""
    place = Path(path)
    if place.is_dir():
        return _encoder(place, device)
    from tokenmill.generate.inception import fid_inception, is_inception

    state = read_tensors(place)
    if not is_inception(state):
        raise RecipeError(f"{path}: not the FID's Inception (no Conv2d_1a_3x3.conv.weight); an encoder is a folder")
    model = fid_inception(state, path).to(device)

    @torch.inference_mode()
    def measure(pictures_BHWC: Pixels) -> NDArray[np.float64]:
        pixels = torch.from_numpy(pictures_BHWC).to(device).movedim(-1, 1).float() / 255
        return _as_array(model(pixels))

    return Features(name="inception", is_fid=True, measure=measure)


def open_lpips(path: str | Path, device: str = "cpu") -> Callable[[Pixels, Pixels], NDArray[np.float64]]:
    """Open LPIPS; returns what gives the distances (B) of two batches BHWC, NaN for pictures it cannot see.

    Raises RecipeError where the weights are not to be had.
    """
    from tokenmill.train.vision_perceptual import load_lpips

    model = load_lpips(path).to(device)

    @torch.inference_mode()
    def measure(one_BHWC: Pixels, two_BHWC: Pixels) -> NDArray[np.float64]:
        if min(one_BHWC.shape[1:3]) < model.min_side_px:
            return np.full(len(one_BHWC), np.nan)
        pair = (
            torch.from_numpy(pixels).to(device).movedim(-1, 1).float() / 127.5 - 1 for pixels in (one_BHWC, two_BHWC)
        )
        return _as_array(model(*pair))

    return measure


def _encoder(folder: Path, device: str) -> Features:
    from transformers import AutoImageProcessor, AutoModel

    try:
        with without_progress_bar():
            model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise RecipeError(f"{folder}: no image encoder: {str(error).strip().splitlines()[0]}") from error
    model = model.to(device).eval()

    @torch.inference_mode()
    def measure(pictures_BHWC: Pixels) -> NDArray[np.float64]:
        inputs = processor(images=list(pictures_BHWC), return_tensors="pt")["pixel_values"].to(device, model.dtype)
        return _as_array(_pooled(model, inputs))

    return Features(name=model.config.model_type, is_fid=False, measure=measure)


def _pooled(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return one row a picture: an encoder's own pooled output, else its first place."""
    vision = getattr(model, "vision_model", model)
    output = vision(pixel_values=pixels)
    pooled = getattr(output, "pooler_output", None)
    rows: torch.Tensor = output.last_hidden_state[:, 0] if pooled is None else pooled
    return rows.flatten(1)


def _as_array(values: torch.Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.double().cpu().numpy()
    return found
