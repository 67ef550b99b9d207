"""Vision tokenizers that know pictures alone, IBQ and FSQ: a clip is its frames one by one (`temporal_factor` 1).

Equal sizes only, nothing padded, `batch_size` frames at a time in order and fewer of many pixels, so codes depend on
pixels and recipe alone. Bounding, rounding and the codebook's search are in float32; `dtype` is of the convolutions.

Shapes: B pictures, T frames, C colours, H W pixels, h w codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.tokenize.vision import Codes, Pixels
from tokenmill.tokenize.vision_device import frames_at_once, on_device, opened_device, whole_float32
from tokenmill.tokenize.vision_emu3 import DTYPES
from tokenmill.tokenize.vision_folder import VisionFolder
from tokenmill.tokenize.vision_fsq import build_fsq
from tokenmill.tokenize.vision_ibq import build_ibq
from tokenmill.tokenize.vision_identity import fingerprint_of_pictures
from tokenmill.tokenize.vision_options import VisionOptions
from tokenmill.tokenize.vision_spatial import channels_last, normalised
from tokenmill.tokenize.vision_weights import load_into, read_weights


class PictureNetwork(Protocol):
    """A network between pixels in -1..1, (B, 3, H, W), and codes (B, h, w)."""

    codebook_size: int
    spatial_factor: int

    def codes(self, pixels_BCHW: torch.Tensor) -> torch.Tensor: ...

    def pixels(self, codes_Bhw: torch.Tensor) -> torch.Tensor: ...


_BUILDERS: Mapping[str, Callable[[VisionFolder], Any]] = {"ibq": build_ibq, "fsq": build_fsq}
_CONVOLUTIONS = ("encoder", "decoder", "quant_conv", "post_quant_conv")


class PictureTokenizer:
    """A loaded network as a `VisionTokenizer`."""

    temporal_factor = 1

    def __init__(self, network: PictureNetwork, options: VisionOptions, *, fingerprint: str) -> None:
        self.network = network
        self.fingerprint = fingerprint
        self.batch_size = options.batch_size
        self.codebook_size = network.codebook_size
        self.spatial_factor = network.spatial_factor
        self.on_cpu = options.device == "cpu"  # then several threads may encode at once
        self._dtype, self._device = DTYPES[options.dtype], torch.device(options.device)

    @torch.inference_mode()
    def encode_images(self, images_BHWC: Pixels) -> Codes:
        """Codes (B, h, w); raises ValueError for no pictures, or sides that are no multiples of `spatial_factor`."""
        height, width = images_BHWC.shape[1:3]
        if not images_BHWC.size or height % self.spatial_factor or width % self.spatial_factor:
            shape = "x".join(map(str, images_BHWC.shape))
            raise ValueError(f"pixels of shape {shape}: need a batch with sides of multiples of {self.spatial_factor}")
        parts = on_device(self._parts(images_BHWC, height * width), self._device)
        with whole_float32(self._device):
            codes = [self.network.codes(normalised(part, dtype=self._dtype)).cpu().numpy() for part in parts]
        return np.concatenate(codes).astype(np.uint32)

    def encode_video(self, frames_BTHWC: Pixels) -> Codes:
        """Codes (B, T, h, w)."""
        batch, frames = frames_BTHWC.shape[:2]
        codes = self.encode_images(frames_BTHWC.reshape(batch * frames, *frames_BTHWC.shape[2:]))
        return codes.reshape(batch, frames, *codes.shape[1:])

    @torch.inference_mode()
    def decode_images(self, codes_Bhw: Codes) -> Pixels:
        """Images (B, H, W, 3); raises ValueError for a code that is not in the codebook."""
        if codes_Bhw.size and int(codes_Bhw.max()) >= self.codebook_size:
            raise ValueError(f"code {int(codes_Bhw.max())}: the codebook has {self.codebook_size}")
        pixels = codes_Bhw.shape[1] * codes_Bhw.shape[2] * self.spatial_factor**2
        return np.concatenate([self._decoded(part) for part in self._parts(codes_Bhw, pixels)])

    def decode_video(self, codes_Bthw: Codes) -> Pixels:
        """Frames (B, T, H, W, 3)."""
        batch, steps = codes_Bthw.shape[:2]
        frames = self.decode_images(codes_Bthw.reshape(batch * steps, *codes_Bthw.shape[2:]))
        return frames.reshape(batch, steps, *frames.shape[1:])

    def _decoded(self, codes_Bhw: Codes) -> Pixels:
        with whole_float32(self._device):
            decoded = self.network.pixels(torch.from_numpy(codes_Bhw.astype(np.int64)).to(self._device)).float()
        images = decoded.add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        result: Pixels = images.movedim(1, -1).cpu().numpy()
        return result

    def _parts(self, array: NDArray[Any], pixels: int) -> Iterator[NDArray[Any]]:
        """Cut pictures of so many pixels into batches, and these into what runs at once."""
        for first in range(0, len(array), self.batch_size):
            batch = array[first : first + self.batch_size]
            size = frames_at_once(len(batch), pixels)
            yield from (batch[start : start + size] for start in range(0, len(batch), size))


def load_pictures(folder: VisionFolder, **options: Any) -> PictureTokenizer:
    """Load the tokenizer of a folder of kind `ibq` or `fsq`; `options` are those of `VisionOptions`, but for `compile`.

    Raises:
        RecipeError: wrong options, a configuration that describes no such network, or other weights than it says.
    """
    chosen = VisionOptions.of(folder.path, options)
    if chosen.compile:
        raise RecipeError(f"vision tokenizer {folder.path}: compile is for Emu3's network alone")
    device = opened_device(chosen.device, f"vision tokenizer {folder.path}")
    with torch.device("meta"):
        network = _BUILDERS[folder.kind](folder)
    fingerprint = fingerprint_of_pictures(folder, chosen)  # before the weights are held: it maps the file too
    load_into(network, read_weights(folder.weights), f"vision tokenizer {folder.path}")
    network.requires_grad_(False).float().to(device).eval()
    for name in _CONVOLUTIONS:
        getattr(network, name).to(DTYPES[chosen.dtype])
    channels_last(network)
    return PictureTokenizer(network, chosen, fingerprint=fingerprint)
