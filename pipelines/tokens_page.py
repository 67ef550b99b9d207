"""A raw document's parts as the segments of its token document: which pictures are shown, which texts are one.

Texts that follow each other in one turn (or on a page) become one text before it is encoded, so that BPE merges across
them; of MMC4's sentences every one is a text of its own. Pictures are stored once, however often they are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.pipelines.sources.raw_document import RawDocument, RawPart, RawPicture, RawText
from tokenmill.tokenize.segments import Segment, TextSegment, VisionSegment

_TURNS = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True)
class PagePolicy:
    """What becomes of the parts of documents.

    Attributes:
        leave_out: a page (never a conversation, whose turns would speak of nothing) loses pictures that are broken.
        max_pictures: documents with more are refused.
        between_texts: stands between two texts that become one.
    """

    leave_out: bool = True
    max_pictures: int = 100
    between_texts: str = "\n"

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "leave_out": self.leave_out, "max_pictures": self.max_pictures, "between_texts": self.between_texts
        }  # fmt: skip

    def check(self, document: RawDocument) -> None:
        """Raise SampleError `too_many_pictures`."""
        if len(document.pictures) > self.max_pictures:
            told = f"{len(document.pictures)}, {self.max_pictures} are allowed (tokenize.document.max_pictures)"
            raise SampleError("too_many_pictures", told)

    def may_lose(self, document: RawDocument) -> bool:
        """Tell whether a document stays one without a picture: conversations and preference pairs do not."""
        parts = document.parts
        is_whole = any((isinstance(one, RawText) and one.role in _TURNS) or one.answer is not None for one in parts)
        return self.leave_out and not is_whole

    def shown_parts(self, parts: Sequence[RawPart], lost: Mapping[int, SampleError]) -> list[RawPart]:
        """Return what is left without some pictures, texts that follow each other joined.

        Raises SampleError `no_pictures_left` where every picture is lost, `nothing_to_learn`.
        """
        left = [part for part in parts if not (isinstance(part, RawPicture) and part.number in lost)]
        if lost and not any(isinstance(part, RawPicture) for part in left):
            raise SampleError("no_pictures_left", f"every picture is broken: {next(iter(lost.values()))}")
        if not any(part.learn for part in left):
            raise SampleError("nothing_to_learn", "none of its parts is to be learned")
        joined: list[RawPart] = []
        for part in left:
            before = joined[-1] if joined else None
            if isinstance(part, RawText) and isinstance(before, RawText) and _are_one(before, part):
                joined[-1] = replace(before, text=before.text + self.between_texts + part.text)
            else:
                joined.append(part)
        return joined


def _are_one(one: RawText, other: RawText) -> bool:
    """Tell whether a text goes on with another; captions stand alone, they are a picture's."""
    told, other_told = ((text.role, text.learn, text.variant, text.answer) for text in (one, other))
    return told == other_told and one.role != "caption"


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTexts:
    """A document's parts with their texts encoded: `ids` of all, and the range of each text part, by its place."""

    parts: Sequence[RawPart]
    ids: NDArray[np.uint32]
    ranges: Mapping[int, tuple[int, int]]

    @classmethod
    def of(cls, parts: Sequence[RawPart], encode: Callable[[str], NDArray[np.uint32]]) -> PageTexts:
        encoded = {place: encode(part.text) for place, part in enumerate(parts) if isinstance(part, RawText)}
        ends = np.cumsum([0, *(len(ids) for ids in encoded.values())]).tolist()
        ranges = dict(zip(encoded, pairwise(ends), strict=True))
        return cls(parts=parts, ids=np.concatenate([np.zeros(0, np.uint32), *encoded.values()]), ranges=ranges)

    @property
    def numbers(self) -> list[int]:
        """The pictures that are shown, each once, in the order in which they are first seen."""
        return list(dict.fromkeys(part.number for part in self.parts if isinstance(part, RawPicture)))

    def segments(self, grids: Mapping[int, tuple[int, int]]) -> list[Segment]:
        """Return the document's segments; `grids` are rows and columns of the codes of each picture shown."""
        areas = [grids[number][0] * grids[number][1] for number in self.numbers]
        offsets = dict(zip(self.numbers, np.cumsum([0, *areas]).tolist(), strict=False))
        return [self._segment(place, part, grids, offsets) for place, part in enumerate(self.parts)]

    def _segment(
        self, place: int, part: RawPart, grids: Mapping[int, tuple[int, int]], offsets: Mapping[int, int]
    ) -> Segment:
        if isinstance(part, RawText):
            return TextSegment(*self.ranges[place], part.role, part.learn, part.variant, answer=part.answer)
        rows, columns = grids[part.number]
        return VisionSegment(
            1, rows, columns, offsets[part.number], learn=part.learn, role=part.role, answer=part.answer
        )
