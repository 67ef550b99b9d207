"""The pictures and clips that the trained model drew, prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from tokenmill.errors import StorageError
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.report_html import Markup, element, note, section
from tokenmill.pipelines.report_learned import Learned
from tokenmill.pipelines.report_pictures import Album, tile

_PIXELS_A_CODE = 8  # only for the room the player takes before it has loaded


def generated_section(store: Store, learned: Learned, album: Album, jobs: Sequence[Markup] = ()) -> Markup:
    """Show what the model drew, prompt by prompt; `jobs` is what is shown of tables of prompts."""
    shown = [*_own_prompts(store, learned, album), *jobs]
    return section("generated", "Generated", *(shown or [note("Nothing has been drawn with these settings yet.")]))


def _own_prompts(store: Store, learned: Learned, album: Album) -> list[Markup]:
    found = learned.drawn
    if not found or not found["pictures"]:
        return []
    settings = found["settings"]
    groups = []
    for prompt in dict.fromkeys(picture["prompt"] for picture in found["pictures"]):
        mine = [picture for picture in found["pictures"] if picture["prompt"] == prompt]
        tiles = [_drawn(store, learned, picture, album) for picture in mine]
        groups.append(
            element("article", element("h4", f"“{prompt}”"), element("div", tiles, class_="sheet"), class_="card")
        )
    sizes = settings.get("sizes") or [f"{settings['height']}x{settings['width']}"]
    how = (
        f"{', '.join(sizes).replace('x', ' × ')} pixels, top-k {settings['top_k']}, "
        f"temperature {settings['temperature']:g}, guidance {settings['guidance']:g}, step {found['step']}."
    )
    if clips := settings.get("clips"):
        how += f" Clips: {clips['height']} × {clips['width']} pixels, {clips['fps']:g} frames a second."
    return [element("p", how), element("div", groups, class_="cards middle")]


def _drawn(store: Store, learned: Learned, picture: Mapping[str, Any], album: Album) -> Markup:
    alt = f"drawn from the prompt: {picture['prompt']}"
    try:
        data = store.read_bytes(f"{learned.drawn_folder}/{picture['file']}")
    except StorageError:
        return element("div", f"{picture['file']} is gone", class_="blank")
    seed = f"seed {picture['seed']}"
    if "fps" in picture:
        height, width = (side * _PIXELS_A_CODE for side in picture["grid"])
        return tile(album.film(data, width, height, alt), seed, f"{picture['frames']} frames")
    pixels = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    return tile(album.picture(pixels, alt, side=256), seed)
