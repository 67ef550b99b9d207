"""The model that a job's worker draws and answers with: which it is without opening it, and opened once a process.

A worker may serve several jobs of one model, so the last one opened is kept here; another one takes its place, since
two of 17 GB do not fit beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenmill.errors import ManifestError, RecipeError, RunError
from tokenmill.generate.export_folder import ExportFolder
from tokenmill.generate.model import describe_model
from tokenmill.generate.opened_model import OpenedModel, find_model, open_model
from tokenmill.manifests.stagedir import StageConfig
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.exported import find_export
from tokenmill.pipelines.tokens_settings import fingerprint_of_vision
from tokenmill.recipe import Recipe
from tokenmill.settings_generate import DrawingJob, QuestionJob


@dataclass(frozen=True, kw_only=True)
class ModelPlace:
    """Which model a job uses, and how.

    Attributes:
        url: of its folder, which `storage` reaches.
        vision: by which its vision tokenizer is loaded, without a device.
        where: the job's place in the recipe, for messages.
    """

    url: str
    fingerprint: str
    vocabulary: Mapping[str, Any]
    vision: Mapping[str, Any]
    about: Mapping[str, Any]
    device: str
    dtype: str
    where: str
    storage: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def config(self, stage: str, version: int, schema: int, job: Mapping[str, Any]) -> StageConfig:
        """Return what names a job's folder; `job` is what of its settings decides about the result."""
        vision = dict(self.vision)
        return StageConfig(
            stage=stage,
            version=version,
            schema=schema,
            settings={"job": dict(job), "vocabulary": dict(self.vocabulary), "vision": vision},
            fingerprints={"model": self.fingerprint, "vision": fingerprint_of_vision(vision)},
            about=self.about,
        )


def model_place(store: Store, recipe: Recipe, job: DrawingJob | QuestionJob, where: str) -> ModelPlace:
    """Find the model of a job without opening it; `store` is that of the recipe's root.

    Raises:
        RecipeError: `model` is no exported folder, or it was trained without pictures. RunError: the recipe's run has
            exported nothing yet.
    """
    folder, storage = _folder(store, recipe, job, where)
    try:
        described = folder.description if folder.is_described else _of_others(folder)
    except (ManifestError, RecipeError) as error:
        raise RecipeError(f"{where}.model: {error}") from error
    vision = {name: value for name, value in dict(described.get("vision") or {}).items() if name != "device"}
    place = f"{folder.store.url}/{folder.path}".rstrip("/")
    if not vision or "vocabulary" not in described:
        raise RecipeError(
            f"{where}: {place} was trained without pictures, or its tokenmill.json does not say with which"
        )
    return ModelPlace(
        url=place,
        fingerprint=folder.fingerprint,
        vocabulary=described["vocabulary"],
        vision=vision,
        about={name: described[name] for name in ("run", "step") if name in described},
        device=job.device,
        dtype=job.dtype,
        where=where,
        storage=storage,
    )


def _of_others(folder: ExportFolder) -> Mapping[str, Any]:
    """Describe an Emu3 in transformers' or BAAI's layout, which has to lie on a local disk."""
    path = folder.store.local_path(folder.path)
    if path is None:
        raise RecipeError(f"{folder.store.url}: no export of ours; copy a model of others to a disk of every worker")
    return describe_model(path)


def _folder(
    store: Store, recipe: Recipe, job: DrawingJob | QuestionJob, where: str
) -> tuple[ExportFolder, Mapping[str, Any]]:
    if job.model is None:
        return find_export(store, recipe.train.last.run), recipe.storage
    storage = recipe.storage if "://" in job.model else {}
    try:
        return find_model(job.model, storage), storage
    except RecipeError as error:
        raise RecipeError(f"{where}.model: {error}") from error


_opened: dict[tuple[str, ...], OpenedModel] = {}


def opened_model(place: ModelPlace, cpus: int) -> OpenedModel:
    """Return a job's model, opening it if another one or none is in memory; on CPUs it has `cpus` threads.

    Raises RunError, since no other try would end better: it is gone, what it names cannot be had, there is no device.
    """
    who = (place.url, place.fingerprint, place.device, place.dtype)
    if who not in _opened:
        close_model()
        _opened[who] = _open(place, cpus)
    return _opened[who]


def close_model() -> None:
    """Let go of the model."""
    _opened.clear()


def _open(place: ModelPlace, cpus: int) -> OpenedModel:
    import torch

    torch.set_num_threads(cpus)
    try:
        opened = open_model(place.url, storage=place.storage, device=place.device, dtype=place.dtype)
        _ = opened.vision
    except RecipeError as error:
        raise RunError(f"{place.where}: {error}") from error
    return opened
