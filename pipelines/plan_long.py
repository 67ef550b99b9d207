"""What becomes of documents that are longer than the context: runs of a clip, parts of a page, leading turns of a chat.

Runs of a clip are documents of their own, captioned each. Parts of a page are pieces of one document as those of a text
are: BOS stands in the first, EOS in the last, and the first id of each has no context and is not learned. A preference
pair is never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from tokenmill.errors import SampleError
from tokenmill.pipelines.plan_spans import Document, spans_between
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.documents import Segment, TextSegment, VisionSegment, document_atoms, document_spans
from tokenmill.tokenize.frames import take_frames
from tokenmill.tokenize.templates import PREFERENCE
from tokenmill.tokenize.vocabulary import Vocabulary


def fitting(
    document: Document, segments: Sequence[Segment], settings: PlanSettings, vocabulary: Vocabulary
) -> list[Document]:
    """Return the documents that are made of one that is too long, as the recipe says; raises SampleError `too_long`."""
    if document.template == PREFERENCE:
        raise too_long(document, settings)
    clips = [segment for segment in segments if isinstance(segment, VisionSegment) and segment.fps is not None]
    if settings.split_long_clips and len(clips) == 1 and clips[0].t > 1:
        return _runs(document, segments, clips[0].t, settings, vocabulary)
    if settings.split_long_pages and document.template == "interleaved":
        return _parts(document, segments, settings, vocabulary)
    if settings.shorten_long_chats and document.template == "chat":
        return [_leading_turns(document, segments, settings, vocabulary)]
    raise too_long(document, settings)


def may_be_cut(settings: PlanSettings) -> bool:
    """Tell whether the recipe makes something of any documents that are too long."""
    return settings.split_long_clips or settings.split_long_pages or settings.shorten_long_chats


def too_long(document: Document, settings: PlanSettings) -> SampleError:
    """Give the reason of a document of which nothing is made."""
    both = ", both answers together" if document.template == PREFERENCE else ""
    return SampleError("too_long", f"{document.length} ids{both}, the context is {settings.context}")


def _runs(
    document: Document, segments: Sequence[Segment], frames: int, settings: PlanSettings, vocabulary: Vocabulary
) -> list[Document]:
    """Take a clip in as few runs of latent frames as fit, as equal as can be, each captioned."""

    def run(first: int, behind: int) -> Document:
        cut = take_frames(segments, first, behind - first)
        spans = document_spans(cut, document.template, vocabulary, document.variant)
        return replace(document, frame=first, frames=behind - first, spans=spans)

    context = settings.context
    told_apart = any(isinstance(segment, TextSegment) and segment.role == "stretch" for segment in segments)
    one_each = (run(n, n + 1) for n in range(frames if told_apart else 1))
    if max(one.length for one in one_each) > context:
        raise SampleError("too_long", f"one latent frame does not fit the context of {context}")
    for number in range(min(frames, -(-document.length // context)), frames + 1):
        edges = [frames * part // number for part in range(number + 1)]
        runs = [run(*edge) for edge in pairwise(edges)]
        if max(one.length for one in runs) <= context:
            return runs
    raise AssertionError("runs of one latent frame fit")


def _parts(
    document: Document, segments: Sequence[Segment], settings: PlanSettings, vocabulary: Vocabulary
) -> list[Document]:
    """Fill one context after the other with what belongs together; a text that is longer than one is cut anywhere."""
    edges, position, context = [0], 0, settings.context
    for length, may_cut in document_atoms(segments, document.template, vocabulary, document.variant):
        if length > context and not may_cut:
            raise SampleError("too_long", f"a picture of {length} ids does not fit the context of {context}")
        if position + length - edges[-1] > context and position > edges[-1]:
            edges.append(position)
        position += length
        while position - edges[-1] > context:
            edges.append(edges[-1] + min(context, position - edges[-1] - settings.min_piece))
    edges.append(document.length)
    return [_between(document, *edge) for edge in pairwise(edges)]


def _leading_turns(
    document: Document, segments: Sequence[Segment], settings: PlanSettings, vocabulary: Vocabulary
) -> Document:
    """Take as many whole turns as fit: every answer ends in an EOS, so what is left is a conversation."""
    ends = _answer_ends(segments, document, vocabulary)
    fit = [end for end in ends if end <= settings.context]
    if not fit:
        told = f"the first turn is {ends[0]} ids long, the context is {settings.context}"
        raise SampleError("too_long", told)
    return _between(document, 0, fit[-1])


def _answer_ends(segments: Sequence[Segment], document: Document, vocabulary: Vocabulary) -> list[int]:
    from tokenmill.tokenize.templates import Marker, lay_out

    parts = lay_out(segments, document.template, vocabulary, document.variant)
    ends = accumulate(length for length, _ in document.spans)
    return [
        end for part, end in zip(parts, ends, strict=True) if isinstance(part, Marker) and part.ids == (vocabulary.eos,)
    ]


def _between(document: Document, start: int, end: int) -> Document:
    return replace(document, start=start, spans=spans_between(document.spans, start, end))
