"""Scorers of a few lines that give what large ones give: vectors, signatures, figures of clips and of their frames."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl

from tokenmill.filters.scorer import Clip, Columns, fingerprint_of


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


@dataclass(frozen=True, kw_only=True)
class Stir:
    """How much neighbouring frames of a clip differ, where (the rows of pixels), and how many frames were seen."""

    name: ClassVar = "stir"
    version: ClassVar = 1
    takes: ClassVar[Literal["video"]] = "video"
    batch_size: ClassVar = 1
    columns: ClassVar = {"stir": pl.Float32(), "stir_rows": pl.List(pl.Int32()), "num_seen": pl.Int32()}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[Clip]) -> Columns:
        found = [_stirred(clip.frames) for clip in batch]
        return {
            "stir": [float(rows.mean()) if len(rows) else None for rows in found],
            "stir_rows": [np.flatnonzero(rows > 1).tolist() for rows in found],
            "num_seen": [len(clip.frames) for clip in batch],
        }


@dataclass(frozen=True, kw_only=True)
class StirModel:
    """The same with a half that prepares: it hands on how much each row of pixels changes."""

    name: ClassVar = "stir_model"
    version: ClassVar = 1
    takes: ClassVar[Literal["video"]] = "video"
    batch_size: ClassVar = 4
    columns: ClassVar = {"most_stir": pl.Float32()}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[Clip]) -> Columns:
        return self.score_prepared(self.prepare(batch))

    def prepare(self, batch: Sequence[Clip]) -> Sequence[Any]:
        return [_stirred(clip.frames) for clip in batch]

    def score_prepared(self, batch: Sequence[Any]) -> Columns:
        return {"most_stir": [float(rows.max()) if len(rows) else None for rows in batch]}


@dataclass(frozen=True, kw_only=True)
class Levels:
    """One of every kind of column about a picture's mean level; looks at `batch_size` pictures a call."""

    name: ClassVar = "levels"
    version: ClassVar = 1
    takes: ClassVar[Literal["image"]] = "image"
    batch_size: ClassVar = 2
    columns: ClassVar = {
        "level": pl.Float32(),
        "level_whole": pl.Int32(),
        "is_bright": pl.Boolean(),
        "level_word": pl.String(),
        "level_hash": pl.UInt64(),
        "level_list": pl.List(pl.Int32()),
    }

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def score(self, batch: Sequence[Any]) -> Columns:
        levels = [float(picture.rgb().mean()) for picture in batch]
        return {
            "level": levels,
            "level_whole": [round(level) for level in levels],
            "is_bright": [level > 128 for level in levels],
            "level_word": [f"level {level:.0f}" for level in levels],
            "level_hash": [round(level) for level in levels],
            "level_list": [[round(level), len(batch)] for level in levels],
        }


def _stirred(frames: Any) -> Any:
    """Return the mean change of every row of pixels; none for a clip of one frame."""
    return np.abs(np.diff(frames.astype(np.float32), axis=0)).mean(axis=(0, 2, 3)) if len(frames) > 1 else np.empty(0)
