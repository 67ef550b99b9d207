"""What is said of a picture or clip, as text segments of its document.

Captions are variants of one role, of which a plan picks one. Questions are turns of one conversation, all of them: the
user's words are shown and not learned, the answers are. What a long clip's caption was put together from stands beside
it with its times, for runs of the clip's frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.pipelines.choose import ONLY_COLUMN
from tokenmill.tokenize.segments import Segment, TextSegment, VisionSegment

_TURNS = ("user", "assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A sample's row of stage choose, as the archive may hold it: see `choose.COLUMNS`."""

    captions: Sequence[str] = ()
    columns: Sequence[str] = ()
    questions: Sequence[Mapping[str, str]] = ()
    pieces: Sequence[Mapping[str, Any]] = ()

    @property
    def described(self) -> dict[str, Any]:
        """Return what the document's JSON says of the words; names of columns where the recipe gave any."""
        told: dict[str, Any] = {"captions": list(self.captions)}
        if any(column != ONLY_COLUMN for column in self.columns):
            told["caption_columns"] = list(self.columns)
        if self.questions:
            told["questions"] = [dict(one) for one in self.questions]
        if self.pieces:
            told["caption_pieces"] = [dict(one) for one in self.pieces]
        return told

    def segments(self, encode: Callable[[str], Iterable[int]]) -> tuple[list[Segment], NDArray[np.uint32]]:
        """Return the segments, and the ids they point into."""
        segments: list[Segment] = []
        ids: list[int] = []
        for text, how in self._texts():
            start = len(ids)
            ids.extend(encode(text))
            segments.append(TextSegment(start, len(ids), **how))
        return segments, np.asarray(ids, dtype=np.uint32)

    def _texts(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for variant, text in enumerate(self.captions):
            yield text, {"role": "caption", "variant": variant}
        for piece in self.pieces:
            seconds = (piece["start_seconds"], piece["end_seconds"])
            yield piece["text"], {"role": "stretch", "variant": piece["variant"], "seconds": seconds}
        for one in self.questions:
            yield one["question"], {"role": "user", "learn": False}
            yield one["answer"], {"role": "assistant"}


def chosen_words(table: pl.DataFrame, shown: Callable[[str], str]) -> dict[str, Words]:
    """Return the words of each sample of a table of stage choose that has some, by key; `shown` masks a text."""
    good = table.filter(pl.col("fail_reason").is_null())
    return {
        row["key"]: Words(
            captions=[shown(text) for text in row["captions"]],
            columns=row["columns"],
            questions=[_shown(one, shown, "question", "answer") for one in row["questions"]],
            pieces=[_shown(one, shown, "text") for one in row["pieces"]],
        )
        for row in good.iter_rows(named=True)
    }


def _shown(one: Mapping[str, Any], shown: Callable[[str], str], *names: str) -> dict[str, Any]:
    return {name: shown(value) if name in names else value for name, value in one.items()}


def with_vision(texts: Sequence[Segment], vision: VisionSegment) -> list[Segment]:
    """Put a picture or clip between what is said of it and the conversation about it, which it opens."""
    said = [text for text in texts if not _is_turn(text)]
    return [*said, vision, *(text for text in texts if _is_turn(text))]


def _is_turn(segment: Segment) -> bool:
    return isinstance(segment, TextSegment) and segment.role in _TURNS
