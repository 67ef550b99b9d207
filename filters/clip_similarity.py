"""How well a caption fits its picture: the cosine of their CLIP embeddings, null without a caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import polars as pl
from pydantic.dataclasses import dataclass

from tokenmill.filters.clip_model import MOST_CHARACTERS, shared_model
from tokenmill.filters.clip_pixels import ClipPixels
from tokenmill.filters.clip_scorer import ClipScorer, numbers
from tokenmill.filters.picture import Picture
from tokenmill.filters.scorer import Columns


class Pair(NamedTuple):
    """A prepared picture and what is said of it, None for nothing."""

    picture: ClipPixels
    caption: str | None


@dataclass(frozen=True, kw_only=True)
class ClipSimilarity(ClipScorer):
    """The cosine of picture and caption, from -1 to 1; with ViT-L/14, pairs that fit have some 0.2 to 0.35.

    Captions are cut after 77 tokens, as open_clip does it, of their first 2,048 characters.
    """

    name: ClassVar[str] = "clip_similarity"
    reads_caption: ClassVar[bool] = True
    columns: ClassVar = {"clip_similarity": pl.Float32()}

    def prepare(self, batch: Sequence[Picture]) -> Sequence[Pair]:
        """Make pictures small; captions travel as they are, in no more than the part that is read."""
        captions = [" ".join((picture.caption or "").split())[:MOST_CHARACTERS] or None for picture in batch]
        return [Pair(*pair) for pair in zip(super().prepare(batch), captions, strict=True)]

    def score_prepared(self, batch: Sequence[Pair]) -> Columns:
        """Score pairs; the whole batch is embedded if one has a caption, so that it is the batch of other scorers."""
        told = [(place, pair.caption) for place, pair in enumerate(batch) if pair.caption]
        scores: list[float | None] = [None] * len(batch)
        if told:
            texts = shared_model(self.source, self.precision, self.device).embed_captions([text for _, text in told])
            pictures = self.embedded([pair.picture for pair in batch])[[place for place, _ in told]]
            for (place, _), score in zip(told, numbers(np.sum(pictures * texts, axis=1).tolist()), strict=True):
                scores[place] = score
        return {"clip_similarity": scores}
