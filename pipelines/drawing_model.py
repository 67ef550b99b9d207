"""The model and vision tokenizer that a job's worker draws with, opened once a process.

A worker may serve several jobs of one model, so the last one opened is kept here; another one takes its place, since
two of 17 GB do not fit beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenmill.errors import RunError
from tokenmill.generate.export_folder import ExportFolder
from tokenmill.generate.model import ExportedModel
from tokenmill.pipelines.drawing_prompts import Canvas
from tokenmill.pipelines.tokens_settings import open_vision
from tokenmill.tokenize.vision import VisionTokenizer


@dataclass(frozen=True, kw_only=True)
class ModelPlace:
    """Which model a job uses and how: `vision` is the export's own specification, without a device."""

    export: ExportFolder
    vision: Mapping[str, Any]
    device: str
    dtype: str

    @property
    def who(self) -> tuple[str, ...]:
        """What two jobs have in common that may share an opened model."""
        return (self.export.store.url, self.export.path, self.export.fingerprint, self.device, self.dtype)


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model in memory, and what it can draw on."""

    exported: ExportedModel
    vision: VisionTokenizer
    canvas: Canvas


_opened: dict[tuple[str, ...], OpenedModel] = {}


def opened_model(place: ModelPlace, cpus: int) -> OpenedModel:
    """Return a job's model, opening it if another one or none is in memory; on CPUs it has `cpus` threads.

    Raises:
        RecipeError: it is no export, or its vocabulary does not fit. RunError: its tokenizer does not, or no device.
    """
    if place.who not in _opened:
        close_model()
        _opened[place.who] = _open(place, cpus)
    return _opened[place.who]


def close_model() -> None:
    """Let go of the model."""
    _opened.clear()


def _open(place: ModelPlace, cpus: int) -> OpenedModel:
    import torch

    from tokenmill.generate.model import load_model

    torch.set_num_threads(cpus)
    spec = dict(place.vision) | ({"device": place.device} if place.device != "cpu" else {})
    try:
        with place.export.local() as path:
            exported = load_model(path, dtype=place.dtype, device=place.device)
        vision = open_vision(spec)
    except (RuntimeError, AssertionError) as error:  # torch has both for a device that is not there
        raise RunError(f"device {place.device}: {str(error).strip().splitlines()[0]}") from error
    known = exported.vocabulary.codebook_size
    if vision.codebook_size > known:
        raise RunError(f"the vision tokenizer has {vision.codebook_size} codes, the model's vocabulary {known}")
    canvas = Canvas(
        vocabulary=exported.vocabulary,
        context=int(exported.model.config.max_position_embeddings),
        spatial_factor=vision.spatial_factor,
        temporal_factor=vision.temporal_factor,
    )
    return OpenedModel(exported=exported, vision=vision, canvas=canvas)
