"""`tokenmill inspect`: what lies at a URL, with texts and pictures decoded by the tokenizers that made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenmill.manifests.inspect import inspect, render
from tokenmill.manifests.inspect_sample import Decoders
from tokenmill.manifests.storage import open_store


def inspect_path(url: str, key: str | None = None, *, picture_to: Path | None = None) -> tuple[dict[str, Any], str]:
    """Return the description of what lies at a URL or local path, as JSON values and as text.

    A sample's picture is written to `picture_to`, the current folder if absent.
    """
    url = url.rstrip("/")
    folder, _, name = url.rpartition("/")
    beside = open_store(folder or ".")
    store, path = (beside, name) if beside.exists(name) else (open_store(url), "")
    found = inspect(store, path, key, open_decoders=_decoders, picture_to=picture_to or Path())
    return found, render(found)


def _decoders(settings: Mapping[str, Any]) -> Decoders:
    """Make decoders from the settings of a tokenize stage; the vision tokenizer loads when a picture needs it."""
    from tokenmill.tokenize.vocabulary import build_vocabulary

    vocabulary = build_vocabulary(settings["vocabulary"])

    def frames(codes_thw: Any) -> Any:
        from tokenmill.tokenize.vision import load_vision_tokenizer

        options = {name: value for name, value in settings["vision"].items() if name != "name"}
        vision = load_vision_tokenizer(settings["vision"]["name"], **options)
        codes = codes_thw.astype("uint32")
        return vision.decode_images(codes) if len(codes) == 1 else vision.decode_video(codes[None])[0]

    return Decoders(text=vocabulary.text.decode, frames=frames)
