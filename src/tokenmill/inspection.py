"""`tokenmill inspect`: the looking of `manifests.inspect` joined with what turns ids into text and pixels.

The decoders are those of the stage that wrote the archive, told by its own `config.json`. They are loaded when a sample
asks for them, so looking at a record or a plan stays a matter of milliseconds; one that isn't to be had on this machine
leaves the ids as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.checkpoint_inspection import describe_training, render_training
from tokenmill.errors import RecipeError, TokenmillError
from tokenmill.manifests.inspect import inspect, render
from tokenmill.manifests.inspect_sample import Decoders
from tokenmill.manifests.storage import Store, open_store

log = logging.getLogger(__name__)

_HUB_TIMEOUT_S = 3.0


def inspect_path(
    path: str, key: str | None = None, picture_to: Path | None = None, storage: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], str]:
    """Describe what lies at a URL or local path, as JSON values and as text.

    With `key` the sample of an archive, whose picture is written into `picture_to` (default: the current folder).
    Raises ManifestError when nothing is there, it is damaged, or it holds no such key.
    """
    if key is None and (training := describe_training(path, storage or {})) is not None:
        training |= {"path": path}
        return training, render_training(training)
    store, name = place_of(path, storage or {})
    if key is not None and picture_to is None:
        picture_to = Path()
    found = inspect(store, name, key, open_decoders=open_decoders, picture_to=picture_to) | {"path": path}
    return found, render(found)


def open_decoders(settings: Mapping[str, Any]) -> Decoders:
    """Make the decoders for the archives of a tokenize stage from its settings."""
    text = None
    try:
        from tokenmill.tokenize.vocabulary import build_vocabulary

        text = build_vocabulary(settings["vocabulary"]).text.decode
    except TokenmillError as error:
        log.warning("texts stay ids: %s", error)
    return Decoders(text=text, frames=_Frames(settings["vision"]) if settings.get("vision") else None)


class _Frames:
    """Decodes codes (t, h, w) to frames THWC; loads the vision tokenizer at the first call."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._spec = spec
        self._vision: Any = None

    def __call__(self, codes_thw: NDArray[Any]) -> NDArray[np.uint8]:
        if self._vision is None:
            from tokenmill.tokenize.vision import load_vision_tokenizer

            self._vision = load_vision_tokenizer(_within_reach(self._spec["name"]), **_options(self._spec))
        codes = codes_thw.astype(np.uint32)
        frames: NDArray[np.uint8]
        frames = self._vision.decode_images(codes) if len(codes) == 1 else self._vision.decode_video(codes[None])[0]
        return frames


def _within_reach(name: str) -> str:
    """Return a tokenizer's name, or its folder in the hub's cache where the hub does not answer.

    The hub's own client tries for 25 s, which a training run wants and somebody who looks does not. Raises RecipeError
    where the cache has none.
    """
    from tokenmill.tokenize.loading import is_hub_name

    if not is_hub_name(name):
        return name
    from huggingface_hub import constants, get_session, try_to_load_from_cache

    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT_S)
    except Exception as error:  # of whichever client the hub's library uses: it changed between versions
        described = try_to_load_from_cache(name, "config.json")
        if not isinstance(described, str):
            raise RecipeError(f"vision tokenizer {name}: the hub does not answer, and the cache has none") from error
        return str(Path(described).parent)
    return name


def _options(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name != "name"}


def place_of(path: str, storage: Mapping[str, Any]) -> tuple[Store, str]:
    """Return a store and the name in it: a folder is a store of its own, a file is one of its folder's."""
    store = open_store(path.rstrip("/") or path, storage)
    if not store.exists(""):
        return store, ""
    folder, _, name = store.url.rpartition("/")
    return open_store(folder or "/", storage), name
