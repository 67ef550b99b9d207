"""CLIP embeddings as a column: for semantic de-duplication and search.

Half precision, unit length: 1.5 kB a picture at 768 numbers. Polars, Parquet with page checksums and `rows_digest` all
carry `Array(Float16, n)`; rounding moves a cosine by 1e-4 at most. A column of a gated scorer is null behind its gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import polars as pl
from pydantic.dataclasses import dataclass

from tokenmill.filters.clip_pixels import ClipPixels
from tokenmill.filters.clip_scorer import ClipScorer
from tokenmill.filters.scorer import Columns


@dataclass(frozen=True, kw_only=True)
class ClipEmbedding(ClipScorer):
    """The embedding of a picture, of length 1, as float16."""

    name: ClassVar[str] = "clip_embedding"

    @property
    def columns(self) -> Mapping[str, pl.DataType]:
        """The column and its length, from the model's configuration alone; raises RecipeError."""
        return {"clip_embedding": pl.Array(pl.Float16, self._named(lambda: self.source.dimension))}

    def score_prepared(self, batch: Sequence[ClipPixels]) -> Columns:
        """Embed prepared pictures."""
        rows = self.embedded(batch).astype(np.float16)
        return {"clip_embedding": [row.tolist() if np.isfinite(row).all() else None for row in rows]}
