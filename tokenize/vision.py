"""Vision tokenizers by name or path: pixels to codes and back.

A tokenizer of one's own is one file with a class of this protocol and an entry point in the group
`tokenmill.vision_tokenizers`, or a line in `BUILT_IN`. Loading imports torch, so it happens only when asked for.

Shapes: B batch, T frames (a multiple of `temporal_factor`), H W pixels (multiples of `spatial_factor`), t h w codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.tokenize.loading import is_path
from tokenmill.tokenize.vision_fingerprint import SHIPPED, fingerprint_of_folder
from tokenmill.tokenize.vision_folder import vision_folder
from tokenmill.tokenize.vision_identity import fingerprint_of_pictures
from tokenmill.tokenize.vision_options import VisionOptions

Pixels = NDArray[np.uint8]
Codes = NDArray[np.uint32]

ENTRY_POINTS = "tokenmill.vision_tokenizers"
BUILT_IN: Mapping[str, str] = {"scenes": "tokenmill.tokenize.vision_emu3:load_shipped"}
"""Name to `module:function`; whatever is no name is a folder, whose configuration tells its class, or a hub name."""


class VisionTokenizer(Protocol):
    """Codes for pixels. Equal `fingerprint` means equal codes for equal pixels on one kind of device.

    A tokenizer that computes on CPUs and may be called by several threads says so by an attribute `on_cpu = True`: then
    it gets one picture or window a call, else batches of exactly `batch_size`.
    """

    fingerprint: str
    codebook_size: int
    batch_size: int  # images or windows that go through the model at once; part of the fingerprint
    spatial_factor: int
    temporal_factor: int

    def encode_images(self, images_BHWC: Pixels) -> Codes:
        """Codes (B, h, w) of images of one size."""
        ...

    def encode_video(self, frames_BTHWC: Pixels) -> Codes:
        """Codes (B, t, h, w) of clips of one size, each window of `temporal_factor` frames coded by itself."""
        ...

    def decode_images(self, codes_Bhw: Codes) -> Pixels:
        """Images (B, H, W, 3)."""
        ...

    def decode_video(self, codes_Bthw: Codes) -> Pixels:
        """Frames (B, T, H, W, 3)."""
        ...


def load_vision_tokenizer(spec: str | Path, **options: Any) -> VisionTokenizer:
    """Load by name (`scenes` ships with tokenmill), by folder, or by hub name; `options` as `VisionOptions` has them.

    A folder's configuration tells what it holds (`vision_folder`): Emu3's, IBQ's or FSQ's network.

    Raises:
        RecipeError: nothing of that name, a folder without weights, or an option it does not know.
    """
    factories = _factories()
    if str(spec) in factories:
        return _made(str(spec), _factory(factories[str(spec)]), options)
    folder = vision_folder(spec)
    if folder is not None and folder.kind != "emu3":
        from tokenmill.tokenize.vision_pictures import load_pictures

        return load_pictures(folder, **options)
    if folder is None and not Path(spec).is_dir() and is_path(str(spec)):
        raise RecipeError(f"vision tokenizer {spec}: there is no such folder")
    from tokenmill.tokenize.vision_emu3 import load

    return load(spec, **options)


def vision_fingerprint(spec: str | Path, **options: Any) -> str:
    """Return the fingerprint of what `load_vision_tokenizer` would load, from the files alone where they tell."""
    folder = _folder_of(spec)
    described = None if folder is None else vision_folder(folder)
    if described is not None and described.kind != "emu3":
        return fingerprint_of_pictures(described, VisionOptions.of(spec, options))
    if folder is not None:
        found = fingerprint_of_folder(folder, VisionOptions.of(spec, options))
        if found is not None:
            return found
    return load_vision_tokenizer(spec, **options).fingerprint


def vision_codebook_size(spec: str | Path) -> int | None:
    """Return how many codes a tokenizer has, from its configuration alone; None where only the model can tell."""
    folder = _folder_of(spec)
    described = None if folder is None else vision_folder(folder)
    return None if described is None else described.codebook_size


def _made(name: str, factory: Callable[..., VisionTokenizer], options: Mapping[str, Any]) -> VisionTokenizer:
    try:
        return factory(**options)
    except TypeError as error:
        raise RecipeError(f"vision tokenizer {name!r} does not take {sorted(options)}: {error}") from error


def _folder_of(spec: str | Path) -> Path | None:
    """Return where a tokenizer's files are, if that is a folder at all; None for a plug-in's name."""
    if str(spec) == "scenes":
        return SHIPPED
    return None if str(spec) in _factories() else Path(spec)


def _factories() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)} | dict(BUILT_IN)


def _factory(reference: str) -> Callable[..., VisionTokenizer]:
    module, _, name = reference.partition(":")
    try:
        factory: Callable[..., VisionTokenizer] = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"vision tokenizer {reference}: {error}") from error
    return factory
