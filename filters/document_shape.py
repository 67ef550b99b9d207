"""What a document is made of: how many pictures and texts, how long, how many answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import polars as pl

from tokenmill.filters.pages import Pages
from tokenmill.filters.scorer import Columns, fingerprint_of


@dataclass(frozen=True, kw_only=True)
class DocumentShape:
    """Counts pictures (each once, however often it is shown), texts, their characters, and what the assistant says."""

    name: ClassVar = "document_shape"
    version: ClassVar = 1
    takes: ClassVar[Literal["document"]] = "document"
    batch_size: ClassVar = 64
    columns: ClassVar = {
        "num_pictures": pl.Int32(),
        "num_texts": pl.Int32(),
        "num_characters": pl.Int32(),
        "num_answers": pl.Int32(),
    }

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[Pages]) -> Columns:
        """Count."""
        return {
            "num_pictures": [document.num_pictures for document in batch],
            "num_texts": [len(document.texts) for document in batch],
            "num_characters": [sum(len(text) for text, _ in document.texts) for document in batch],
            "num_answers": [sum(role == "assistant" for _, role in document.texts) for document in batch],
        }
