"""transformers' `Emu3VQVAE` as a vision tokenizer: frames once, video by windows, equal sizes only.

What the port gets wrong or slow stays outside (EMU3.md §2): images are not repeated to four frames (`vision_frames`),
video never goes through its `encode`, whose crop is wrong for clips, and nothing is padded, because padding changes
codes. A batch is cut into `batch_size` at a time, in order, so codes depend on pixels alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.tokenize.loading import without_progress_bar
from tokenmill.tokenize.preprocess import normalise
from tokenmill.tokenize.vision import Codes, Pixels
from tokenmill.tokenize.vision_fingerprint import SHAPE, SHIPPED, fingerprint_of
from tokenmill.tokenize.vision_frames import WINDOW, embedded, latents, pixels

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Emu3VisionTokenizer:
    """A loaded model; makes codes on its device, deterministically on a CPU."""

    def __init__(self, model: Any, *, fingerprint: str, batch_size: int) -> None:
        self.model = model
        self.fingerprint = fingerprint
        self.batch_size = batch_size
        self.codebook_size = int(model.config.codebook_size)
        self.spatial_factor = int(model.spatial_scale_factor)
        self.temporal_factor = int(model.config.temporal_downsample_factor)

    @property
    def on_cpu(self) -> bool:
        """Tell that calls compute on CPUs alone, where several threads may make them at once."""
        return bool(self.model.device.type == "cpu")

    def encode_images(self, images_BHWC: Pixels) -> Codes:
        """Codes (B, H/8, W/8)."""
        return self._encode(images_BHWC[:, None])[:, 0]

    def encode_video(self, frames_BTHWC: Pixels) -> Codes:
        """Codes (B, T/4, H/8, W/8), every window of four frames coded by itself."""
        batch, frames = frames_BTHWC.shape[:2]
        if frames % WINDOW:
            raise ValueError(f"{frames} frames: the number of frames must be a multiple of {WINDOW}")
        windows = frames_BTHWC.reshape(batch * frames // WINDOW, WINDOW, *frames_BTHWC.shape[2:])
        codes = self._encode(windows)
        return codes.reshape(batch, frames // WINDOW, *codes.shape[2:])

    def decode_images(self, codes_Bhw: Codes) -> Pixels:
        """Images (B, 8h, 8w, 3)."""
        return self._decode(codes_Bhw[:, None], frames=1)[:, 0]

    def decode_video(self, codes_Bthw: Codes) -> Pixels:
        """Frames (B, 4t, 8h, 8w, 3), every latent frame decoded by itself."""
        batch, steps = codes_Bthw.shape[:2]
        frames = self._decode(codes_Bthw.reshape(batch * steps, 1, *codes_Bthw.shape[2:]), frames=WINDOW)
        return frames.reshape(batch, steps * WINDOW, *frames.shape[2:])

    @torch.inference_mode()
    def _encode(self, frames_BTHWC: Pixels) -> Codes:
        self._check_sides(frames_BTHWC)
        parts = [self._codes(part) for part in _parts(frames_BTHWC, self.batch_size)]
        return np.concatenate(parts)

    def _codes(self, frames_BTHWC: Pixels) -> Codes:
        scaled = torch.from_numpy(np.moveaxis(normalise(frames_BTHWC), -1, -3).copy())
        found = self.model.quantize(latents(self.model, scaled.to(self.model.device, self.model.dtype)))
        codes: Codes = found.cpu().numpy().astype(np.uint32)
        return codes

    @torch.inference_mode()
    def _decode(self, codes_Bthw: Codes, *, frames: int) -> Pixels:
        if codes_Bthw.size and int(codes_Bthw.max()) >= self.codebook_size:
            raise ValueError(f"code {int(codes_Bthw.max())}: the codebook has {self.codebook_size}")
        return np.concatenate([self._pixels(part, frames) for part in _parts(codes_Bthw, self.batch_size)])

    def _pixels(self, codes_Bthw: Codes, frames: int) -> Pixels:
        codes = torch.from_numpy(codes_Bthw.astype(np.int64)).to(self.model.device)
        decoded = pixels(self.model, embedded(self.model, codes), frames=frames).float()
        scaled = decoded.add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        result: Pixels = scaled.movedim(-3, -1).cpu().numpy()
        return result

    def _check_sides(self, frames_BTHWC: Pixels) -> None:
        height, width = frames_BTHWC.shape[2:4]
        if not len(frames_BTHWC) or height % self.spatial_factor or width % self.spatial_factor:
            shape = "x".join(map(str, frames_BTHWC.shape))
            raise ValueError(f"pixels of shape {shape}: need a batch with sides of multiples of {self.spatial_factor}")


def load_shipped(**options: Any) -> Emu3VisionTokenizer:
    """Load the small tokenizer that comes with tokenmill: 2,048 codes, for scenes and small photographs."""
    return load(SHIPPED, **options)


def load(spec: str | Path, *, dtype: str = "float32", device: str = "cpu", batch_size: int = 16) -> Emu3VisionTokenizer:
    """Load `Emu3VQVAE` from a folder or the hub, from safetensors only.

    Raises:
        RecipeError: no such folder or model, no safetensors in it, or an unknown dtype.
    """
    from transformers.models.emu3 import Emu3VQVAE

    if dtype not in DTYPES:
        raise RecipeError(f"vision tokenizer {spec}: dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if batch_size < 1:
        raise RecipeError(f"vision tokenizer {spec}: batch_size {batch_size} must be at least 1")
    try:
        with without_progress_bar():
            model = Emu3VQVAE.from_pretrained(str(spec), use_safetensors=True, dtype=DTYPES[dtype])
    except (OSError, ValueError) as error:
        raise RecipeError(f"vision tokenizer {spec}: {str(error).splitlines()[0]}") from error
    if model.config.temporal_downsample_factor != WINDOW:
        frames = model.config.temporal_downsample_factor
        raise RecipeError(f"vision tokenizer {spec}: {frames} frames a window; only {WINDOW} are supported")
    model.requires_grad_(False).to(device).eval()
    return Emu3VisionTokenizer(model, fingerprint=fingerprint(model, dtype, batch_size), batch_size=batch_size)


def fingerprint(model: Any, dtype: str, batch_size: int) -> str:
    """The sha256 over weights (names, shapes, values), shape of the network, rules, precision and batch size."""
    config = {key: getattr(model.config, key) for key in SHAPE}
    weights = (
        (name, value.detach().cpu().contiguous().float().numpy()) for name, value in sorted(model.state_dict().items())
    )
    return fingerprint_of(config, weights, dtype=dtype, batch_size=batch_size)


def _parts(array: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    return (array[start : start + size] for start in range(0, len(array), size))
