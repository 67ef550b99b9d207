"""What the scorers on CLIP embeddings have in common: a model by name or path, and pictures made small for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.errors import RecipeError
from tokenmill.filters.clip_model import shared_model
from tokenmill.filters.clip_pixels import ClipPixels, clip_pixels
from tokenmill.filters.clip_source import ClipSource
from tokenmill.filters.picture import Picture, View
from tokenmill.filters.scorer import Columns, fingerprint

Found = TypeVar("Found")
BatchSize = Annotated[int, Field(ge=1, le=64)]


@dataclass(frozen=True, kw_only=True)
class ClipScorer:
    """A scorer that looks at pictures through a CLIP model; subclasses say what they make of the embeddings.

    Args:
        model: a name of open_clip's (`ViT-L-14`), a folder, or `hf-hub:owner/repository`.
        pretrained: a tag of open_clip's, or a file of weights; empty: `openai` for a name, a folder's own weights.
        precision: of the network; embeddings are float32 in any case.
        device: `auto` takes CUDA where there is one; not part of the fingerprint.
        batch_size: pictures a call; moves values by 1e-7, so it is part of the fingerprint.
    """

    model: str = "ViT-L-14"
    pretrained: str = ""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    batch_size: BatchSize = 32

    name: ClassVar[str]
    version: ClassVar[int] = 1
    takes: ClassVar[Literal["image"]] = "image"
    reads_caption: ClassVar[bool] = False
    places: ClassVar = ("model", "pretrained", "head", "device")  # what lies there counts, not its name

    @property
    def source(self) -> ClipSource:
        return ClipSource(model=self.model, pretrained=self.pretrained)

    @property
    def views(self) -> tuple[View, ...]:
        return (self.source.framing.view,)

    @cached_property
    def fingerprint(self) -> str:
        """Hash the weights, the preprocessing, precision, batch size and the scorer's own settings."""
        settings = {key: value for key, value in asdict(self).items() if key not in self.places}
        return fingerprint(self.name, self.version, settings, weights=self._weights_digest())

    def _weights_digest(self) -> str:
        return self._named(lambda: self.source.digest)

    def _named(self, look_up: Callable[[], Found]) -> Found:
        """Put the scorer's name before what is wrong with its model."""
        try:
            return look_up()
        except RecipeError as error:
            raise RecipeError(f"scorer {self.name!r}: {error}") from error

    def score(self, batch: Sequence[Picture]) -> Columns:
        """Score pictures in one batch."""
        return self.score_prepared(self.prepare(batch))

    def prepare(self, batch: Sequence[Picture]) -> Sequence[Any]:
        """Make pictures as large as the network sees them."""
        framing = self.source.framing
        return [clip_pixels(picture, framing) for picture in batch]

    def score_prepared(self, batch: Sequence[Any]) -> Mapping[str, Sequence[Any]]:
        """Score what `prepare` returned."""
        raise NotImplementedError

    def embedded(self, batch: Sequence[ClipPixels]) -> Any:
        """Return unit vectors (n, dimension) float32."""
        return shared_model(self.source, self.precision, self.device).embed_pictures(batch)


def numbers(values: Sequence[float]) -> list[float | None]:
    """Return floats, None for what is none (half precision overflowed): such a sample is dropped by the rule's null."""
    return [float(value) if math.isfinite(value) else None for value in values]
