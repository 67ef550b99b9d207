"""What a column of captions asks about each kept sample, and how a question is known again.

A question is its rendered words, the bytes they are about and the seed: `request` is the digest of those. So what was
answered is found again whatever else changed (the selection, the cut into slices, the rest of the metadata), and a
question with other words is another one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from tokenmill.captions.captioner import Captioner, build_captioner
from tokenmill.captions.prompts import drawn_prompt, render, request_seed
from tokenmill.errors import SampleError
from tokenmill.manifests.identity import digest_of
from tokenmill.pipelines.archive_json import finite
from tokenmill.pipelines.samples import clip_seconds
from tokenmill.settings_caption import CaptionColumn


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question: about a sample, or about a stretch of a long clip.

    Attributes:
        row: the sample's place among the rows.
        piece, pieces: which stretch of how many; frames and seconds are the film's, None of pictures.
        error: why it cannot be asked (the prompt needs a field the sample lacks).
    """

    row: int
    key: str
    request: str
    sample: Mapping[str, Any]
    piece: int = 0
    pieces: int = 1
    start_frame: int | None = None
    end_frame: int | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    template: str = ""
    prompt: str = ""
    system: str = ""
    seed: int = 0
    error: SampleError | None = None


@dataclass(frozen=True, kw_only=True)
class Asking:
    """A column as one source has it, with its engine (built, nothing loaded)."""

    column: CaptionColumn
    captioner: Captioner
    modality: str
    source: str

    @classmethod
    def of(cls, column: CaptionColumn, modality: str, source: str) -> Asking:
        """Build the engine; raises RecipeError for unknown names and settings."""
        mine = column.of_source(source)
        return cls(
            column=mine, captioner=build_captioner(mine.engine, mine.options), modality=modality, source=source
        )  # fmt: skip

    @property
    def identity(self) -> dict[str, Any]:
        """What of the recipe decides about answers, beside the engine's fingerprint."""
        column = self.column
        asked = {"prompt": list(column.prompt), "system": column.system, "seed": column.seed}
        clips = {"frames": column.frames, "long_seconds": column.long_seconds} if self._is_cut else {}
        return {"engine": column.engine, **(asked if self.captioner.asks else {}), **clips}

    @property
    def _is_cut(self) -> bool:
        return self.modality == "video" and self.captioner.asks and self.captioner.takes != "text"

    def questions(self, rows: pl.DataFrame, carried: Sequence[str] = ()) -> Iterator[Question]:
        """Yield the questions about some index rows, in their order; long clips have several."""
        for number, row in enumerate(rows.iter_rows(named=True)):
            for stretch in self._stretches(row):
                yield self._question(number, row, stretch, carried)

    def _stretches(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        if not self._is_cut:
            return [{"piece": 0, "pieces": 1}]
        return stretches(row, self.column.long_seconds)

    def _question(
        self, number: int, row: Mapping[str, Any], stretch: Mapping[str, Any], carried: Sequence[str]
    ) -> Question:
        sample = _sample(row, stretch, self.source, self.modality, carried)
        place = {"row": number, "key": row["key"], "sample": sample, **stretch}
        if not self.captioner.asks:
            return Question(request=digest_of(sample), **place)
        column = self.column
        template = drawn_prompt(column.prompt, row["key"], column.seed) if column.prompt else ""
        asked: dict[str, Any] = {"template": template, "seed": request_seed(column.seed, row["key"], stretch["piece"])}
        try:
            asked |= {"prompt": render(template, sample), "system": render(column.system, sample)}
        except SampleError as error:
            unasked = digest_of([template, column.system, row["key"], row["metadata"], row["caption"]])
            return Question(request=unasked, error=error, **place, **asked)
        seen = () if self.captioner.takes == "text" else (row["sha256"], *(stretch["piece"], stretch["pieces"]))
        request = digest_of([seen, asked["prompt"], asked["system"], asked["seed"]])
        return Question(request=request, **place, **asked)


def stretches(row: Mapping[str, Any], long_seconds: float) -> list[dict[str, Any]]:
    """Cut a clip that is `long_seconds` or longer into equal stretches of half that to all of it."""
    (start, end), first, last = clip_seconds(row), row["start_frame"], row["end_frame"]
    seconds, frames = end - start, last - first
    count = 1 if seconds < long_seconds else max(2, math.ceil(seconds / long_seconds))
    count = max(1, min(count, frames))
    edges = [(first + frames * n // count, start + seconds * n / count) for n in range(count + 1)]
    return [
        {
            "piece": n,
            "pieces": count,
            "start_frame": edges[n][0],
            "end_frame": edges[n + 1][0],
            "start_seconds": edges[n][1],
            "end_seconds": edges[n + 1][1],
        }
        for n in range(count)
    ]


def _sample(
    row: Mapping[str, Any], stretch: Mapping[str, Any], source: str, modality: str, carried: Sequence[str]
) -> dict[str, Any]:
    """Return what prompts and engines without pixels may read of a sample."""
    told: dict[str, Any] = {
        "key": row["key"],
        "source": source,
        "modality": modality,
        "caption": row["caption"],
        "metadata": finite(json.loads(row["metadata"])),
        "scores": {name: finite(row[name]) for name in carried},
    }
    if modality == "video":
        start, end = clip_seconds(row)
        seconds = stretch.get("end_seconds", end) - stretch.get("start_seconds", start)
        told |= {"width_px": row["width_px"], "height_px": row["height_px"], "seconds": round(seconds, 3)}
        told |= {"piece": stretch["piece"] + 1, "pieces": stretch["pieces"]}
    return told
