"""LAION's aesthetic predictors, the first filter of Emu3's recipe (EMU3.md §1): a head on ViT-L/14 embeddings.

Two kinds are known, told apart by their shapes: the linear head (`sa_0_4_vit_l_14_linear.pth`, which Emu3 names) and
the improved one (`sac+logos+ava1-l14-linearMSE.pth`: 768 → 1024 → 128 → 64 → 16 → 1, whose dropouts do nothing here and
which has no activation between its layers). Both want the embedding at length 1. Where they are: docs/scorers_clip.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import polars as pl
from pydantic.dataclasses import dataclass

from tokenmill.errors import RunError
from tokenmill.filters.clip_head import read_head
from tokenmill.filters.clip_pixels import ClipPixels
from tokenmill.filters.clip_scorer import ClipScorer, numbers
from tokenmill.filters.scorer import Columns
from tokenmill.filters.weights_file import weights_digest, weights_path


@dataclass(frozen=True, kw_only=True)
class Aesthetic(ClipScorer):
    """How much people like a picture, from about 1 to about 10; Emu3 keeps 5.5 and more.

    Args:
        head: the head's weights: a path, or `hf-hub:owner/repository/file`.
    """

    head: str

    name: ClassVar[str] = "aesthetic"
    columns: ClassVar = {"aesthetic": pl.Float32()}

    def _weights_digest(self) -> str:
        head = self._named(lambda: weights_digest(weights_path(self.head, "head")))
        return f"{super()._weights_digest()} {head}"

    def score_prepared(self, batch: Sequence[ClipPixels]) -> Columns:
        """Score prepared pictures; raises RunError for a head of another shape."""
        path = weights_path(self.head, "head")
        head = read_head(path, self.source.dimension)
        if head.num_outputs != 1:
            raise RunError(f"{path}: a head with {head.num_outputs} outputs; an aesthetic score is one")
        return {"aesthetic": numbers(head(self.embedded(batch))[:, 0].tolist())}
