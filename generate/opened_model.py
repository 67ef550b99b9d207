"""A model to draw and answer with, from whatever place it is named by: opened once, checked against its tokenizers.

Accepts an export, the folder of the run that made it, or a folder of transformers, local or in any store. Weights take
seconds to minutes to read, so who the model is (`fingerprint`) is known without them, and what does not fit is refused
before: another vision tokenizer than the one that made the training's codes draws noise that looks like a bad model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenmill.errors import ManifestError, RecipeError
from tokenmill.generate.export_folder import ExportFolder
from tokenmill.generate.model import ExportedModel, load_model
from tokenmill.generate.seeing import Area
from tokenmill.manifests.storage import open_store
from tokenmill.tokenize.vision import VisionTokenizer, load_vision_tokenizer

DTYPES = ("float32", "bfloat16", "float16")
_AREA = (512 * 512, 512 * 512, 5.0)  # of a recipe that says nothing of it under tokenize


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """Weights, vocabulary, vision tokenizer and trained sizes of one model, on one device.

    Attributes:
        name: what people call it: its run, or its folder.
        fingerprint: of its files.
        model: weights and vocabulary.
        areas: sizes it was trained on by modality, where it says so.
        vision_spec: by which its vision tokenizer is loaded; empty for a model without pictures.
        vision_fingerprint: of the tokenizer that made its codes, where it says so.
    """

    name: str
    fingerprint: str
    model: ExportedModel
    device: str
    dtype: str
    areas: Mapping[str, tuple[int, int, float]]
    vision_spec: Mapping[str, Any]
    vision_fingerprint: str | None = None

    @property
    def context(self) -> int:
        """The number of ids that it holds."""
        return int(self.model.model.config.max_position_embeddings)

    def area(self, modality: str) -> Area:
        """Return the sizes in pixels that it was trained on: `image` or `video`."""
        known = self.areas.get(modality) or self.areas.get("image") or _AREA
        return Area(min_area=int(known[0]), max_area=int(known[1]), max_aspect=float(known[2]))

    @cached_property
    def vision(self) -> VisionTokenizer:
        """The vision tokenizer, loaded at the first use.

        Raises:
            RecipeError: the model was trained without pictures, or its tokenizer cannot be had, has other codes than
                the model's, or is another than the one that made them.
        """
        if not self.vision_spec:
            raise RecipeError(f"{self.name} was trained without pictures: it neither draws nor sees")
        spec = dict(self.vision_spec)
        name = spec.pop("name")
        if self.device != "cpu" or "device" in spec:
            spec["device"] = self.device
        tokenizer = load_vision_tokenizer(name, **spec)
        if self.vision_fingerprint not in (None, tokenizer.fingerprint):
            told = f"its codes were made by the vision tokenizer {str(self.vision_fingerprint)[:16]}"
            raise RecipeError(f"{self.name}: {told}, {name} is {tokenizer.fingerprint[:16]} on this machine")
        if tokenizer.codebook_size > self.model.vocabulary.codebook_size:
            known = self.model.vocabulary.codebook_size
            raise RecipeError(f"{self.name}: {name} has {tokenizer.codebook_size} codes, the model {known}")
        return tokenizer

    def identity(self) -> dict[str, str]:
        """Say who it is, for metadata and for what is drawn once."""
        return {
            "model": self.fingerprint,
            "model_name": self.name,
            "vocabulary": self.model.vocabulary.fingerprint,
            "vision": self.vision.fingerprint,
            "device": self.device.partition(":")[0],
            "dtype": self.dtype,
        }


def open_model(
    place: str, *, storage: Mapping[str, Any] | None = None, device: str = "cpu", dtype: str = "float32"
) -> OpenedModel:
    """Open the model at a path or URL.

    Raises:
        RecipeError: nothing is there, it is no model, its vocabulary does not fit, or the device is not there.
    """
    from tokenmill.tokenize.vision_device import opened_device

    if dtype not in DTYPES:
        raise RecipeError(f"dtype {dtype!r}: allowed: {', '.join(DTYPES)}")
    folder = find_model(place, storage)
    kind = opened_device(device, "--device").type
    os.environ.setdefault("DS_ACCELERATOR", kind)  # transformers imports DeepSpeed, which else says on stdout it looked
    try:
        description: Mapping[str, Any] = folder.description if folder.is_described else {}
    except ManifestError as error:
        raise RecipeError(f"{place}: {error}") from error
    with folder.local() as path:
        model = load_model(path, dtype=dtype, device=device)
    return OpenedModel(
        name=_called(place),
        fingerprint=folder.fingerprint,
        model=model,
        device=device,
        dtype=dtype,
        areas=dict(description.get("areas") or {}),
        vision_spec=dict(model.vision or {}),
        vision_fingerprint=description.get("vision_fingerprint"),
    )


def find_model(place: str, storage: Mapping[str, Any] | None = None) -> ExportFolder:
    """Return the folder of a model at a path or URL: that itself, or `export` below it.

    Raises RecipeError where neither is one.
    """
    store = open_store(place, storage)
    candidates = [ExportFolder(store, path) for path in ("", "export")]
    for folder in candidates:
        if folder.is_described:
            return folder
    if store.exists("config.json"):
        return candidates[0]
    if store.folders():
        hint = "training has not come to its end" if _is_run(store.folders()) else "give checkpoints/<run>/export"
        raise RecipeError(f"{place}: no exported model; {hint}")
    raise RecipeError(f"{place}: no exported model is there; give checkpoints/<run>/export of a finished run")


def _is_run(folders: list[str]) -> bool:
    return any(folder.rsplit("/", 1)[-1].startswith("step") for folder in folders)


def _called(place: str) -> str:
    """Name a model by its run, or its folder."""
    parts = [part for part in place.rstrip("/").split("/") if part not in ("export", "")]
    return parts[-1] if parts else "model"
