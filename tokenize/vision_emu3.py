"""transformers' `Emu3VQVAE` as a vision tokenizer: frames once, video by windows, equal sizes only, bounded memory.

What the port gets wrong or slow stays outside (EMU3.md §2): images are not repeated to four frames (`vision_frames`),
video never goes through its `encode`, whose crop is wrong for clips, and nothing is padded, because padding changes
codes. Batches are cut in order, `batch_size` at a time and then by pixels: codes depend on pixels and recipe alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenmill.tokenize.vision import Codes, Pixels
from tokenmill.tokenize.vision_checkpoint import read_checkpoint
from tokenmill.tokenize.vision_device import frames_at_once, on_device, opened_device, whole_float32
from tokenmill.tokenize.vision_emu3_names import SHAPE
from tokenmill.tokenize.vision_fingerprint import SHIPPED, fingerprint_of
from tokenmill.tokenize.vision_frames import WINDOW, decoder_inputs, embedded, latents_of_features, nearest_codes
from tokenmill.tokenize.vision_options import VisionOptions
from tokenmill.tokenize.vision_spatial import channels_last, decoded, encoded, normalised

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Emu3VisionTokenizer:
    """A loaded model; makes codes on its device, deterministically on a CPU."""

    def __init__(self, model: Any, options: VisionOptions, *, fingerprint: str) -> None:
        self.model = model
        self.options = options
        self.fingerprint = fingerprint
        self.batch_size = options.batch_size
        self.codebook_size = int(model.config.codebook_size)
        self.spatial_factor = int(model.spatial_scale_factor)
        self.temporal_factor = int(model.config.temporal_downsample_factor)
        self._dtype = DTYPES[options.dtype]
        self._device = torch.device(options.device)
        self._features, self._frames = _compiled(self._features_of, options), _compiled(self._frames_of, options)

    @property
    def on_cpu(self) -> bool:
        """Tell that calls compute on CPUs alone, where several threads may make them at once; compiled ones may not."""
        return bool(self.model.device.type == "cpu" and not self.options.compile)

    def encode_images(self, images_BHWC: Pixels) -> Codes:
        """Codes (B, H/8, W/8)."""
        return self._encode(images_BHWC[:, None])[:, 0]

    def encode_video(self, frames_BTHWC: Pixels) -> Codes:
        """Codes (B, T/4, H/8, W/8), every window of four frames coded by itself."""
        batch, frames = frames_BTHWC.shape[:2]
        if not frames or frames % WINDOW:
            raise ValueError(f"{frames} frames: the number of frames must be a positive multiple of {WINDOW}")
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
    def latents(self, frames_BTHWC: Pixels) -> torch.Tensor:
        """Latents (B, 1, D, h, w), float32, of one batch of images (T = 1) or windows (T = 4), as they are searched."""
        self._check_sides(frames_BTHWC)
        frames = frames_BTHWC.reshape(-1, *frames_BTHWC.shape[2:])
        at_once = frames_at_once(len(frames), frames.shape[1] * frames.shape[2])
        with whole_float32(self._device):
            # a graph's output is overwritten by its next run, hence the copy
            parts = [self._features(part).float().clone() for part in on_device(_parts(frames, at_once), self._device)]
            return latents_of_features(self.model, torch.unflatten(torch.cat(parts), 0, frames_BTHWC.shape[:2]))

    def _encode(self, frames_BTHWC: Pixels) -> Codes:
        self._check_sides(frames_BTHWC)
        return np.concatenate([self._codes(part) for part in _parts(frames_BTHWC, self.batch_size)])

    @torch.inference_mode()
    def _codes(self, frames_BTHWC: Pixels) -> Codes:
        codes: Codes = nearest_codes(self.model, self.latents(frames_BTHWC)).cpu().numpy().astype(np.uint32)
        return codes

    @torch.inference_mode()
    def _decode(self, codes_Bthw: Codes, *, frames: int) -> Pixels:
        if codes_Bthw.size and int(codes_Bthw.max()) >= self.codebook_size:
            raise ValueError(f"code {int(codes_Bthw.max())}: the codebook has {self.codebook_size}")
        rows, columns = (side * self.spatial_factor for side in codes_Bthw.shape[2:])
        made = np.empty((len(codes_Bthw) * frames, rows, columns, 3), np.uint8)
        done = 0
        for part in _parts(codes_Bthw, self.batch_size):
            for pixels in self._pixels(part, frames, at_once=frames_at_once(len(part) * frames, rows * columns)):
                made[done : done + len(pixels)] = pixels
                done += len(pixels)
        return made.reshape(-1, frames, *made.shape[1:])

    def _pixels(self, codes_Bthw: Codes, frames: int, *, at_once: int) -> Iterator[Pixels]:
        codes = torch.from_numpy(codes_Bthw.astype(np.int64)).to(self._device)
        with whole_float32(self._device):
            inputs = decoder_inputs(self.model, embedded(self.model, codes), frames)
            for hidden, guide in zip(*(torch.split(part, at_once) for part in inputs), strict=True):
                yield self._frames(hidden, guide).cpu().numpy()

    def _features_of(self, frames_NHWC: torch.Tensor) -> torch.Tensor:
        return encoded(self.model.encoder, normalised(frames_NHWC, dtype=self._dtype))

    def _frames_of(self, hidden_NDhw: torch.Tensor, guide_NDhw: torch.Tensor) -> torch.Tensor:
        """Bytes (N, H, W, 3)."""
        pixels = decoded(self.model.decoder, hidden_NDhw.to(self._dtype), guide_NDhw.to(self._dtype)).float()
        return pixels.add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def _check_sides(self, frames_BTHWC: Pixels) -> None:
        height, width = frames_BTHWC.shape[2:4]
        if not frames_BTHWC.size or height % self.spatial_factor or width % self.spatial_factor:
            shape = "x".join(map(str, frames_BTHWC.shape))
            raise ValueError(f"pixels of shape {shape}: need a batch with sides of multiples of {self.spatial_factor}")


def load_shipped(**options: Any) -> Emu3VisionTokenizer:
    """Load the small tokenizer that comes with tokenmill: 2,048 codes, for scenes and small photographs."""
    return load(SHIPPED, **options)


def load(spec: str | Path, **options: Any) -> Emu3VisionTokenizer:
    """Load `Emu3VQVAE` from a folder or the hub, in any of the layouts of `vision_emu3_files`, from safetensors only.

    `options` are those of `VisionOptions`.

    Raises:
        RecipeError: no such folder or model, no safetensors in it, weights that do not fit, a device
            that is not there, or an unknown option.
    """
    chosen = VisionOptions.of(spec, options)
    device = opened_device(chosen.device, f"vision tokenizer {spec}")
    model = read_checkpoint(spec)
    who = fingerprint(model, chosen)
    model.requires_grad_(False).to(device).eval()
    for half in (model.encoder, model.decoder):
        channels_last(half)
        for name, module in half.named_children():
            if not name.startswith("time_"):
                module.to(DTYPES[chosen.dtype])
    return Emu3VisionTokenizer(model, chosen, fingerprint=who)


def fingerprint(model: Any, options: VisionOptions) -> str:
    """The sha256 over weights (names, shapes, values), shape of the network, rules, precision and batch size."""
    config = {key: getattr(model.config, key) for key in SHAPE}
    weights = (
        (name, value.detach().cpu().contiguous().float().numpy()) for name, value in sorted(model.state_dict().items())
    )
    return fingerprint_of(config, weights, options)


def _compiled(function: Callable[..., torch.Tensor], options: VisionOptions) -> Callable[..., torch.Tensor]:
    """Compile once for all sizes; what cannot be compiled is an error, never silently another way with other codes."""
    if not options.compile:
        return function
    mode = "reduce-overhead" if options.cuda_graphs else None
    compiled: Callable[..., torch.Tensor] = torch.compile(function, dynamic=True, fullgraph=True, mode=mode)
    return compiled


def _parts(array: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    return (array[start : start + size] for start in range(0, len(array), size))
