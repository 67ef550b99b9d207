"""Two scorers of a few lines that give what large ones give: a vector of a picture, a MinHash signature of a text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl

from tokenmill.filters.scorer import Columns, fingerprint_of


@dataclass(frozen=True, kw_only=True)
class ColourVectors:
    """The mean colours of sixteen tiles, less their mean, as one vector; null for a picture of a single colour."""

    name: ClassVar = "colour_vectors"
    version: ClassVar = 1
    takes: ClassVar[Literal["image"]] = "image"
    batch_size: ClassVar = 8
    columns: ClassVar = {"clip_embedding": pl.Array(pl.Float16(), 48)}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[Any]) -> Columns:
        found: list[list[float] | None] = []
        for image in batch:
            pixels = image.rgb().astype(np.float32)
            rows, columns = (np.array_split(np.arange(side), 4) for side in pixels.shape[:2])
            tiles = np.concatenate([pixels[np.ix_(r, c)].mean(axis=(0, 1)) for r in rows for c in columns])
            found.append((tiles - tiles.mean()).tolist() if np.ptp(tiles) else None)
        return {"clip_embedding": found}


@dataclass(frozen=True, kw_only=True)
class WordSignatures:
    """MinHash over a text's words."""

    name: ClassVar = "word_signatures"
    version: ClassVar = 1
    takes: ClassVar[Literal["text"]] = "text"
    batch_size: ClassVar = 8
    columns: ClassVar = {"minhash": pl.Array(pl.UInt32(), 128)}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[str]) -> Columns:
        words = [set(text.lower().split()) for text in batch]
        return {"minhash": [[min(_hash(word, number) for word in some) for number in range(128)] for some in words]}


def _hash(word: str, number: int) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4, salt=number.to_bytes(8, "big")).digest(), "big")
