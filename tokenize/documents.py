"""From a stored sample to the ids a model reads, and what each position weighs in the loss.

Assembling happens in the loader, at training speed, for every sample of every epoch: a 64×64 picture (4,096 codes)
takes tens of microseconds, and nothing about it is stored.

Shape suffixes: L ids of a document, T latent frames, H rows, W codes a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.tokenize.segments import (
    Segment,
    TextSegment,
    VisionSegment,
    segment_from_json,
    segment_to_json,
    segments_from_json,
    segments_to_json,
)
from tokenmill.tokenize.templates import LossClass, Marker, Part, lay_out
from tokenmill.tokenize.vocabulary import Vocabulary

__all__ = [
    "Assembled",
    "Segment",
    "TextSegment",
    "VisionSegment",
    "assemble",
    "assembled_length",
    "document_atoms",
    "document_spans",
    "segment_from_json",
    "segment_to_json",
    "segments_from_json",
    "segments_to_json",
]


@dataclass(frozen=True, slots=True)
class Assembled:
    """A document: `ids` int32 (L,), and `weights` float32 (L,), the loss weight of *predicting* ids[i]."""

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]

    def piece(self, start: int, length: int) -> Assembled:
        """Cut ids [start, start + length) out; the first id of a piece has no context and weighs nothing.

        BOS stands in the first piece only and EOS in the last, because the whole document has them there.
        """
        if start < 0 or length < 1 or start + length > len(self.ids):
            raise ValueError(f"piece [{start}, {start + length}) is outside a document of {len(self.ids)} ids")
        weights = self.weights[start : start + length].copy()
        weights[0] = 0.0
        return Assembled(self.ids[start : start + length], weights)


def assembled_length(segments: Sequence[Segment], template: str, vocabulary: Vocabulary, variant: int = 0) -> int:
    """Tell the length of the assembled document from its segments alone; raises as `lay_out` does."""
    return sum(length for length, _ in document_spans(segments, template, vocabulary, variant))


def document_spans(
    segments: Sequence[Segment], template: str, vocabulary: Vocabulary, variant: int = 0
) -> list[tuple[int, LossClass]]:
    """Give length and loss class of the document's parts in order, so that a plan can weigh pieces without any id."""
    return [(_part_length(part), _loss_class(part)) for part in lay_out(segments, template, vocabulary, variant)]


def document_atoms(
    segments: Sequence[Segment], template: str, vocabulary: Vocabulary, variant: int = 0
) -> list[tuple[int, bool]]:
    """Give the document as stretches that belong together: how many ids, and whether it may be cut inside (a text).

    A picture is one with the markers around it; BOS and the words of a template go with what follows, EOS with what it
    ends. Raises as `lay_out` does.
    """
    atoms: list[tuple[int, bool]] = []
    ahead = 0
    for part in lay_out(segments, template, vocabulary, variant):
        length = _part_length(part)
        if isinstance(part, TextSegment):
            atoms.append((ahead + length, True))
            ahead = 0
        elif isinstance(part, VisionSegment):
            atoms.append((ahead + length, False))
            ahead = 0
        elif atoms and part.ids in ((vocabulary.eov,), (vocabulary.eos,)):
            atoms[-1] = (atoms[-1][0] + length, atoms[-1][1])
        else:
            ahead += length
    return atoms


def assemble(
    segments: Sequence[Segment],
    text_ids: NDArray[np.integer[Any]],
    codes: NDArray[np.integer[Any]],
    template: str,
    vocabulary: Vocabulary,
    variant: int = 0,
    vision_weight: float = 0.5,
    text_weight: float = 1.0,
) -> Assembled:
    """Put a sample's text ids and codes together as the template says.

    Pre-training learns everything, captions before a picture included (text 1, vision 0.5: P §2.4); a run on vision
    only passes `text_weight=0`, one with vision off `vision_weight=0`. A segment with `learn: false` weighs nothing.
    Raises SampleError (`out_of_range`) for ids, codes or segments that the vocabulary or the arrays do not hold, and
    as `lay_out` does.
    """
    parts = lay_out(segments, template, vocabulary, variant)
    lengths = [_part_length(part) for part in parts]
    classes = {"text": text_weight, "vision": vision_weight, "none": 0.0}
    ids = np.empty(sum(lengths), np.int32)
    weights = np.empty(len(ids), np.float32)
    position = 0
    for part, length in zip(parts, lengths, strict=True):
        here = slice(position, position + length)
        ids[here] = _part_ids(part, text_ids, codes, vocabulary)
        weights[here] = classes[_loss_class(part)]
        position += length
    return Assembled(ids, weights)


def _part_length(part: Part) -> int:
    if isinstance(part, Marker):
        return len(part.ids)
    if isinstance(part, TextSegment):
        return part.end - part.start
    return part.num_grid_ids


def _loss_class(part: Part) -> LossClass:
    if isinstance(part, Marker):
        return part.loss
    if not part.learn:
        return "none"
    return "text" if isinstance(part, TextSegment) else "vision"


def _part_ids(
    part: Part, text_ids: NDArray[np.integer[Any]], codes: NDArray[np.integer[Any]], vocabulary: Vocabulary
) -> NDArray[np.integer[Any]] | tuple[int, ...]:
    if isinstance(part, Marker):
        return part.ids
    if isinstance(part, TextSegment):
        return _checked("text ids", text_ids, part.start, part.end, vocabulary.text.size)
    end = part.offset + part.num_codes
    return _grid_ids(part, _checked("codes", codes, part.offset, end, vocabulary.codebook_size), vocabulary)


def _grid_ids(segment: VisionSegment, codes: NDArray[np.integer[Any]], vocabulary: Vocabulary) -> NDArray[np.int32]:
    t, h, w = segment.t, segment.h, segment.w
    rows_THW = np.empty((t, h, w + 1), np.int32)
    rows_THW[..., :w] = codes.reshape(t, h, w)
    rows_THW[..., :w] += vocabulary.vision_base
    rows_THW[..., w] = vocabulary.eol
    frames_TL = np.empty((t, h * (w + 1) + 1), np.int32)
    frames_TL[:, :-1] = rows_THW.reshape(t, -1)
    frames_TL[:, -1] = vocabulary.eof
    return frames_TL.reshape(-1)


def _checked(what: str, values: NDArray[np.integer[Any]], start: int, end: int, limit: int) -> NDArray[np.integer[Any]]:
    if end > len(values):
        raise SampleError("out_of_range", f"a segment needs {what} [{start}, {end}) of {len(values)}")
    taken = values[start:end]
    if end > start and (int(taken.max()) >= limit or int(taken.min()) < 0):
        raise SampleError("out_of_range", f"{what} reach {int(taken.max())}; the vocabulary ends at {limit - 1}")
    return taken
