"""First-fit packs of samples as they come, into the arrays that tokenmill's loader gives (train/packs.py).

Every peer gets this, since none packs documents of this kind by itself, and all get the same compiled assembling.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.loader_peers.documents import MARKER, TEXT, VISION, write_document
from tokenmill.tokenize.segments import Segment, TextSegment, VisionSegment
from tokenmill.tokenize.templates import Marker, lay_out
from tokenmill.tokenize.vocabulary import Vocabulary, byte_vocabulary

CONTEXT = 5_120
SIDE = 64
VOCABULARY: Vocabulary = byte_vocabulary(2_048)
OPEN_PACKS = 8
_VISION = np.array([VOCABULARY.vision_base, VOCABULARY.eol, VOCABULARY.eof], np.int64)
_WEIGHTS = {"text": 1.0, "vision": 0.5, "none": 0.0}

Sample = tuple[NDArray[Any], NDArray[Any]]  # text ids, codes; as they lie in the archive


@dataclass(slots=True, eq=False)
class OpenPack:
    """A pack that is being filled; the arrays of train/packs.py."""

    input_ids: NDArray[np.int64] = field(default_factory=lambda: np.full(CONTEXT, VOCABULARY.pad, np.int64))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.full(CONTEXT, -100, np.int64))
    loss_weight: NDArray[np.float32] = field(default_factory=lambda: np.zeros(CONTEXT, np.float32))
    position_ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(CONTEXT, np.int64))
    borders: list[int] = field(default_factory=lambda: [0])

    @property
    def used(self) -> int:
        return self.borders[-1]

    def closed(self) -> dict[str, Any]:
        """Give the arrays; the padding is a document of its own."""
        used = self.used
        if used < CONTEXT:
            self.position_ids[used:] = np.arange(CONTEXT - used)
            self.borders.append(CONTEXT)
        return {
            "input_ids": self.input_ids,
            "labels": self.labels,
            "loss_weight": self.loss_weight,
            "position_ids": self.position_ids,
            "cu_seqlens": np.array(self.borders, np.int32),
            "num_tokens": used,
        }


@lru_cache(maxsize=100_000)
def layout(num_text: int, num_codes: int) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float32], int]:
    """Lay a caption and its picture, or a text, out by the project's own templates; remembered by its lengths."""
    segments: list[Segment] = [TextSegment(0, num_text, "caption" if num_codes else "body")]
    if num_codes:
        segments.append(VisionSegment(1, SIDE, num_codes // SIDE, 0))
    parts, markers, weights = [], [], []
    for part in lay_out(segments, "generation" if num_codes else "language", VOCABULARY):
        if isinstance(part, Marker):
            parts.append((MARKER, len(markers), len(part.ids), 0))
            markers += part.ids
            weights.append(_WEIGHTS[part.loss])
        elif isinstance(part, TextSegment):
            parts.append((TEXT, part.start, part.end - part.start, 0))
            weights.append(_WEIGHTS["text"])
        else:
            parts.append((VISION, part.offset, part.num_grid_ids, part.w))
            weights.append(_WEIGHTS["vision"])
    length = sum(part[2] for part in parts)
    return np.array(parts, np.int32), np.array(markers, np.int64), np.array(weights, np.float32), length


def first_fit(samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    """Pack samples into the first of a few open packs that has room; the fullest is closed when none has."""
    opened: list[OpenPack] = []
    for whole, codes in samples:
        for text in pieces(whole, codes):
            parts, markers, weights, length = layout(len(text), len(codes))
            pack = next((pack for pack in opened if pack.used + length <= CONTEXT), None)
            if pack is None:
                if len(opened) == OPEN_PACKS:
                    fullest = max(opened, key=lambda pack: pack.used)
                    opened.remove(fullest)
                    yield fullest.closed()
                pack = OpenPack()
                opened.append(pack)
            end = write_document(
                parts, markers, weights, text, codes, _VISION, pack.used,
                pack.input_ids, pack.labels, pack.loss_weight, pack.position_ids,
            )  # fmt: skip
            pack.borders.append(end)
    yield from (pack.closed() for pack in opened)


def pieces(text: NDArray[Any], codes: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Cut a text that is longer than the context; each piece gets a BOS and an EOS of its own."""
    longest = CONTEXT - 2
    if len(codes) or len(text) <= longest:
        yield text
        return
    for start in range(0, len(text), longest):
        yield text[start : start + longest]
