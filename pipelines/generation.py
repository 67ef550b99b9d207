"""Stage generate: the recipe's prompts, drawn with the exported model and decoded to PNG.

The folder is named by the model and the settings of the drawing. Pictures carry digits of their own content and
`generated.json` is published last and exclusively, so a killed run leaves nothing that counts, two runs at once agree
on the first one, and asking again costs one look (0.1 s, no torch).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.manifests.identity import digest_of, sha256_hex, short
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.evaluation import evaluate_model
from tokenmill.pipelines.exported import Exported, find_export, steady_threads
from tokenmill.pipelines.tokens import open_vision
from tokenmill.recipe import GenerateSettings, Recipe

__all__ = ["evaluate_model", "generate_pictures", "generated_name"]

VERSION = 1
SCHEMA = 1
_DESCRIPTION = "generated.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One drawn picture: what was asked, the document's ids, the pixels (HWC)."""

    prompt: str
    number: int
    sample: int
    seed: int
    grid: tuple[int, int]
    ids: NDArray[np.int32]
    pixels: NDArray[np.uint8]


def generate_pictures(recipe: Recipe) -> dict[str, Any]:
    """Draw the recipe's prompts, unless this model has drawn them with these settings already.

    Raises:
        RunError: nothing was exported yet. RecipeError: sides that are no multiple of the tokenizer's factor, pictures
            that do not fit the model's context, or a model that was trained without pictures.
    """
    if not recipe.generate.prompts:
        return {"pictures": 0, "note": "the recipe names no prompt (generate.prompts)"}
    store = open_store(recipe.root, recipe.storage)
    exported = find_export(store, recipe.train.run)
    name = generated_name(exported, recipe.generate)
    if not store.exists(name):
        _draw_and_publish(store, exported, recipe.generate, name)
    found = json.loads(store.read_bytes(name))
    return {"pictures": len(found["pictures"]), "generated": name.removesuffix(f"/{_DESCRIPTION}")}


def generated_name(exported: Exported, settings: GenerateSettings) -> str:
    """Name the description of what this model draws with these settings."""
    identity = digest_of({"version": VERSION, "model": exported.fingerprint, "settings": _settings(settings)})
    return f"generated/{exported.run}/{short(identity)}/{_DESCRIPTION}"


def _settings(settings: GenerateSettings) -> dict[str, Any]:
    """What of the settings determines the pictures."""
    return settings.model_dump(mode="json", exclude={"evaluate_documents"})


def _draw_and_publish(store: Store, exported: Exported, settings: GenerateSettings, name: str) -> None:
    folder = name.removesuffix(f"/{_DESCRIPTION}")
    vision = exported.description.get("vision")
    if not vision:
        raise RecipeError(f"generate.prompts: {exported.path} was trained without pictures; it cannot draw")
    tokenizer = open_vision(vision)
    rows = []
    for picture in _draw(exported, settings, tokenizer):
        data = _png(picture)
        digest = sha256_hex(data)
        file = f"{picture.number:03d}-{picture.sample:03d}-{digest[:8]}.png"
        store.put(f"{folder}/{file}", data)
        rows.append(
            {
                "prompt": picture.prompt,
                "seed": picture.seed,
                "file": file,
                "bytes": len(data),
                "sha256": digest,
                "grid": list(picture.grid),
                "ids_sha256": sha256_hex(picture.ids.astype("<i4").tobytes()),
            }
        )
    described = {
        "schema": SCHEMA,
        "version": VERSION,
        "run": exported.run,
        "step": exported.description.get("step"),
        "model": exported.fingerprint,
        "vision": tokenizer.fingerprint,
        "settings": _settings(settings),
        "pictures": rows,
    }
    store.put_exclusive(name, (json.dumps(described, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def _draw(exported: Exported, settings: GenerateSettings, tokenizer: Any) -> list[Picture]:
    """Sample every prompt `per_prompt` times and decode; the seed is counted up over all of them."""
    from tokenmill.generate.model import load_model
    from tokenmill.generate.pictures import decode_ids
    from tokenmill.generate.sample import generate_vision

    grid = _grid(settings, tokenizer.spatial_factor)
    with exported.local() as path:
        loaded = load_model(path)
    asked = [(n, k, text) for n, text in enumerate(settings.prompts) for k in range(settings.per_prompt)]
    pictures = []
    with steady_threads(loaded.model):
        documents = generate_vision(
            loaded.model,
            loaded.vocabulary,
            [text for _, _, text in asked],
            *grid,
            top_k=settings.top_k,
            temperature=settings.temperature,
            guidance=settings.guidance,
            seed=settings.seed,
        )
        for seed, ((number, sample, text), ids) in enumerate(zip(asked, documents, strict=True), settings.seed):
            (pixels,) = decode_ids(ids, loaded.vocabulary, tokenizer)
            pictures.append(
                Picture(prompt=text, number=number, sample=sample, seed=seed, grid=grid, ids=ids, pixels=pixels)
            )
    return pictures


def _grid(settings: GenerateSettings, factor: int) -> tuple[int, int]:
    """Turn pixels into rows and columns of codes."""
    for side in ("height", "width"):
        if getattr(settings, side) % factor:
            raise RecipeError(f"generate.{side}: {getattr(settings, side)} is no multiple of {factor} pixels a code")
    return settings.height // factor, settings.width // factor


def _png(picture: Picture) -> bytes:
    from tokenmill.generate.pictures import save_png

    buffer = BytesIO()
    save_png(buffer, picture.pixels, {"prompt": picture.prompt, "seed": str(picture.seed)})
    return buffer.getvalue()
