"""Stage generate: the recipe's prompts, drawn with the exported model and decoded to PNG, clips to mp4.

The folder is named by the model and the settings of the drawing. The drawn ids are kept beside the pictures, since a
picture that is encoded again gives other codes than those that were judged (`drawn_tokens`). Pictures and ids carry
digits of their own content and `generated.json` is published last and exclusively, so a killed run leaves nothing that
counts, two runs at once agree on the first one, and asking again costs one look (0.1 s, no torch).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import ManifestError, RecipeError, StorageError
from tokenmill.generate.drawn_files import TOKEN_COLUMNS, put_tokens
from tokenmill.generate.threads import steady_threads
from tokenmill.generate.write_video import mp4
from tokenmill.manifests.identity import digest_of, sha256_hex, short
from tokenmill.manifests.named_tables import open_named_table
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.evaluation import evaluate_model
from tokenmill.pipelines.exported import Exported, find_export
from tokenmill.pipelines.tokens_settings import open_vision
from tokenmill.recipe import GenerateSettings, Recipe

__all__ = ["evaluate_model", "generate_pictures", "generated_name"]

VERSION = 2
SCHEMA = 2
_DESCRIPTION = "generated.json"
_LATER = ("clips", "negative", "top_p", "sizes")  # whose defaults leave the names of what was drawn before as they are


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One drawn picture, or clip with its `fps`: what was asked, the document's ids, the frames (THWC)."""

    prompt: str
    number: int
    sample: int
    seed: int
    grid: tuple[int, int]
    ids: NDArray[np.int32]
    frames: NDArray[np.uint8]
    fps: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Some prompts for pictures of one size, or for clips of one length."""

    prompts: tuple[str, ...]
    rows: int
    columns: int
    latent_frames: int = 1
    fps: float | None = None
    seconds: float | None = None


def generate_pictures(recipe: Recipe) -> dict[str, Any]:
    """Draw the recipe's prompts, unless this model has drawn them with these settings already.

    Raises:
        RunError: nothing was exported yet. RecipeError: sides that are no multiple of the tokenizer's factor, pictures
            that do not fit the model's context, or a model that was trained without pictures.
    """
    if not recipe.generate.prompts and recipe.generate.clips is None:
        return {"pictures": 0, "note": "the recipe names no prompt (generate.prompts)"}
    store = open_store(recipe.root, recipe.storage)
    exported = find_export(store, recipe.train.last.run)
    name = generated_name(exported, recipe.generate)
    if not store.exists(name):
        _draw_and_publish(store, exported, recipe.generate, name)
    found = json.loads(store.read_bytes(name))
    clips = sum("fps" in picture for picture in found["pictures"])
    counted = {"pictures": len(found["pictures"]) - clips} | ({"clips": clips} if clips else {})
    return {**counted, "generated": name.removesuffix(f"/{_DESCRIPTION}")}


def generated_name(exported: Exported, settings: GenerateSettings) -> str:
    """Name the description of what this model draws with these settings."""
    identity = digest_of({"version": VERSION, "model": exported.fingerprint, "settings": _settings(settings)})
    return f"generated/{exported.run}/{short(identity)}/{_DESCRIPTION}"


def _settings(settings: GenerateSettings) -> dict[str, Any]:
    """What of the settings determines the pictures."""
    names = [name for name in _LATER if getattr(settings, name) == type(settings).model_fields[name].default]
    return settings.model_dump(mode="json", exclude={"evaluate_documents", "jobs", "questions", *names})


def _draw_and_publish(store: Store, exported: Exported, settings: GenerateSettings, name: str) -> None:
    folder = name.removesuffix(f"/{_DESCRIPTION}")
    vision = exported.description.get("vision")
    if not vision:
        raise RecipeError(f"generate.prompts: {exported.path} was trained without pictures; it cannot draw")
    tokenizer = open_vision(vision)
    pictures = _draw(exported, settings, tokenizer)
    rows = [_put(store, folder, picture) for picture in pictures]
    described = {
        "schema": SCHEMA,
        "version": VERSION,
        "run": exported.run,
        "step": exported.description.get("step"),
        "model": exported.fingerprint,
        "vision": tokenizer.fingerprint,
        "vocabulary": exported.description["vocabulary"],
        "tokens": _put_tokens(store, folder, rows, pictures),
        "settings": _settings(settings),
        "pictures": rows,
    }
    store.put_exclusive(name, (json.dumps(described, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def _put(store: Store, folder: str, picture: Picture) -> dict[str, Any]:
    """Write a picture or clip; returns its entry in the description."""
    is_clip = picture.fps is not None
    data = mp4(picture.frames, picture.fps) if picture.fps is not None else _png(picture)
    digest = sha256_hex(data)
    file = f"{picture.number:03d}-{picture.sample:03d}-{digest[:8]}.{'mp4' if is_clip else 'png'}"
    store.put(f"{folder}/{file}", data)
    return {
        "prompt": picture.prompt,
        "seed": picture.seed,
        "file": file,
        "bytes": len(data),
        "sha256": digest,
        "grid": list(picture.grid),
        "ids_sha256": sha256_hex(picture.ids.astype("<i4").tobytes()),
        **({"fps": picture.fps, "frames": len(picture.frames)} if is_clip else {}),
    }


def _put_tokens(store: Store, folder: str, rows: Sequence[Mapping[str, Any]], pictures: Sequence[Picture]) -> str:
    """Write the ids of everything that was drawn; returns the file's name."""
    name, data = put_tokens(rows, [picture.ids for picture in pictures])
    store.put(f"{folder}/{name}", data)
    return name


def drawn_tokens(store: Store, name: str) -> tuple[dict[str, Any], pl.DataFrame]:
    """Return a description (`generated_name`) and the ids that were drawn (`TOKEN_COLUMNS`).

    Raises ManifestError where nothing was drawn yet, or the table is damaged.
    """
    try:
        described = json.loads(store.read_bytes(name))
    except StorageError as error:
        raise ManifestError(f'{name}: nothing was drawn yet; run "tokenmill generate"') from error
    folder = name.removesuffix(f"/{_DESCRIPTION}")
    return described, open_named_table(store, f"{folder}/{described['tokens']}").frame(TOKEN_COLUMNS)


def _draw(exported: Exported, settings: GenerateSettings, tokenizer: Any) -> list[Picture]:
    """Sample every prompt `per_prompt` times and decode; the seed is counted up over all of them, clips last."""
    from tokenmill.generate.model import load_model

    asked = list(_asked(settings, tokenizer))
    with exported.local() as path:
        loaded = load_model(path)
    pictures: list[Picture] = []
    with steady_threads(loaded.model):
        for group in asked:
            pictures += _draw_group(loaded, group, settings, tokenizer, number=len(pictures))
    return pictures


def _draw_group(
    loaded: Any, group: _Asked, settings: GenerateSettings, tokenizer: Any, *, number: int
) -> list[Picture]:
    """Draw one size; `number` pictures were drawn before."""
    from tokenmill.generate.pictures import decode_ids
    from tokenmill.generate.sample import generate_vision

    first = number // settings.per_prompt
    wanted = [(n, k, text) for n, text in enumerate(group.prompts, first) for k in range(settings.per_prompt)]
    documents = generate_vision(
        loaded.model,
        loaded.vocabulary,
        [text for _, _, text in wanted],
        group.rows,
        group.columns,
        group.latent_frames,
        fps=group.fps,
        seconds=group.seconds,
        top_k=settings.top_k,
        top_p=settings.top_p,
        negative=settings.negative,
        temperature=settings.temperature,
        guidance=settings.guidance,
        seed=settings.seed + number,
        num_codes=tokenizer.codebook_size,
    )
    return [
        Picture(
            prompt=text, number=n, sample=k, seed=seed, grid=(group.rows, group.columns), ids=ids, fps=group.fps,
            frames=np.stack(decode_ids(ids, loaded.vocabulary, tokenizer)),
        )
        for seed, ((n, k, text), ids) in enumerate(zip(wanted, documents, strict=True), settings.seed + number)
    ]  # fmt: skip


def _asked(settings: GenerateSettings, tokenizer: Any) -> Iterator[_Asked]:
    factor = tokenizer.spatial_factor
    for size in settings.sizes or (f"{settings.height}x{settings.width}",):
        if settings.prompts:
            height, width = map(int, size.split("x"))
            rows, columns = _grid(height, width, factor, "generate")
            yield _Asked(prompts=settings.prompts, rows=rows, columns=columns)
    if settings.clips is not None:
        clips, window = settings.clips, tokenizer.temporal_factor
        rows, columns = _grid(clips.height, clips.width, factor, "generate.clips")
        steps = max(1, round(clips.seconds * clips.fps / window))
        yield _Asked(
            prompts=clips.prompts, rows=rows, columns=columns, latent_frames=steps, fps=clips.fps,
            seconds=round(steps * window / clips.fps, 3),
        )  # fmt: skip


def _grid(height: int, width: int, factor: int, where: str) -> tuple[int, int]:
    """Turn pixels into rows and columns of codes."""
    for side, pixels in (("height", height), ("width", width)):
        if pixels % factor:
            raise RecipeError(f"{where}.{side}: {pixels} is no multiple of {factor} pixels a code")
    return height // factor, width // factor


def _png(picture: Picture) -> bytes:
    from tokenmill.generate.pictures import save_png

    buffer = BytesIO()
    save_png(buffer, picture.frames[0], {"prompt": picture.prompt, "seed": str(picture.seed)})
    return buffer.getvalue()
