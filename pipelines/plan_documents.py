"""From a sample to the documents a plan makes of it: whether it is drawn, under which template, or why it is refused.

Every draw is a hash of (plan, sample, repetition, what is drawn), not a generator's next number, so a window's plan
does not depend on which samples came before, and windows can be planned anywhere in any order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from tokenmill.errors import SampleError
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.documents import Segment, TextSegment, VisionSegment, document_spans, segments_from_json
from tokenmill.tokenize.frames import take_frames
from tokenmill.tokenize.templates import LossClass
from tokenmill.tokenize.vocabulary import Vocabulary

CUTTABLE = ("language",)  # templates whose documents are nothing but text

Spans = Sequence[tuple[int, LossClass]]


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a window: a sample, or a stretch of its clip, under one template."""

    sample: int
    frame: int
    frames: int
    template: str
    variant: int
    spans: Spans

    @property
    def length(self) -> int:
        return sum(length for length, _ in self.spans)

    @property
    def cuttable(self) -> bool:
        return self.template in CUTTABLE


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """Makes documents of samples, for one plan and one pass over one source."""

    plan_id: str
    source: str
    settings: PlanSettings
    vocabulary: Vocabulary
    repetition: int
    share: float

    def documents(self, sample: int, row: Mapping[str, Any]) -> list[Document]:
        """Give the documents of one index row, at least one; raises SampleError with the reason it is left out."""
        key = row["key"]
        self._check_drawn(key)
        segments = segments_from_json(json.loads(row["segments"]))
        if not segments:
            raise SampleError("empty", "the sample has no segments")
        variant = self._variant(key, segments)
        template, spans = self._template(key, row["modality"], segments, variant)
        document = Document(sample, 0, 0, template, variant, spans)
        if document.cuttable or document.length <= self.settings.context:
            return [document]
        return self._split(document, segments)

    def _check_drawn(self, key: str) -> None:
        name = f"{self.source}/{key}"
        is_held_out = uniform("held out", name) < self.settings.held_out
        if is_held_out != (self.settings.part == "held_out"):
            raise SampleError("held_out" if is_held_out else "training", "belongs to the other part")
        if key in self.settings.exclude:
            raise SampleError("excluded", "on the list of excluded keys")
        if self.share < 1.0 and self._draw("share", key) >= self.share:
            raise SampleError("not_drawn", f"this pass takes {self.share:g} of the source")

    def _variant(self, key: str, segments: Sequence[Segment]) -> int:
        captions = sorted({s.variant for s in segments if isinstance(s, TextSegment) and s.role == "caption"})
        return captions[int(self._draw("variant", key) * len(captions))] if captions else 0

    def _template(
        self, key: str, modality: str, segments: Sequence[Segment], variant: int
    ) -> tuple[str, Sequence[tuple[int, LossClass]]]:
        """Draw among the templates that fit the sample; raises the last one's SampleError when none does."""
        shares = {name: share for name, share in sorted(self.settings.templates.get(modality, {}).items()) if share > 0}
        refusal = SampleError("no_template", f"the plan has no template for {modality}")
        position = self._draw("template", key)
        while shares:
            name = _pick(shares, position)
            try:
                return name, document_spans(segments, name, self.vocabulary, variant)
            except SampleError as error:
                refusal = error
                del shares[name]
        raise refusal

    def _split(self, document: Document, segments: Sequence[Segment]) -> list[Document]:
        """Take a clip that is too long in as few runs of latent frames as fit, as equal as can be, each captioned."""
        clips = [segment for segment in segments if isinstance(segment, VisionSegment)]
        context = self.settings.context
        if not self.settings.split_long_clips or len(clips) != 1 or clips[0].t == 1:
            raise SampleError("too_long", f"{document.length} ids, the context is {context}")
        frames = clips[0].t
        told_apart = any(isinstance(segment, TextSegment) and segment.role == "stretch" for segment in segments)
        one_each = (self._run(document, segments, n, n + 1) for n in range(frames if told_apart else 1))
        if max(run.length for run in one_each) > context:
            raise SampleError("too_long", f"one latent frame does not fit the context of {context}")
        for number in range(min(frames, -(-document.length // context)), frames + 1):
            edges = [frames * run // number for run in range(number + 1)]
            runs = [self._run(document, segments, *edge) for edge in pairwise(edges)]
            if max(run.length for run in runs) <= context:
                return runs
        raise AssertionError("runs of one latent frame fit")

    def _run(self, document: Document, segments: Sequence[Segment], first: int, behind: int) -> Document:
        cut = take_frames(segments, first, behind - first)
        spans = document_spans(cut, document.template, self.vocabulary, document.variant)
        return Document(document.sample, first, behind - first, document.template, document.variant, spans)

    def _draw(self, what: str, key: str) -> float:
        return uniform(self.plan_id, self.source, key, str(self.repetition), what)


def uniform(*parts: str) -> float:
    """Give a number in [0, 1) that is a pure function of some strings."""
    state = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(state[:7], "big") / 2**56


def piece_weights(spans: Spans, start: int, length: int) -> dict[LossClass, int]:
    """Count the ids of each loss class in a piece; its first id has no context and is counted under `none`."""
    counts: dict[LossClass, int] = {"text": 0, "vision": 0, "none": 0}
    ends = accumulate(span for span, _ in spans)
    for (span, loss), end in zip(spans, ends, strict=True):
        overlap = min(end, start + length) - max(end - span, start)
        if overlap <= 0:
            continue
        first = 1 if end - span <= start < end else 0
        counts[loss] += overlap - first
        counts["none"] += first
    return counts


def _pick(shares: Mapping[str, float], position: float) -> str:
    """Choose a name by share; `position` in [0, 1)."""
    target = position * sum(shares.values())
    for name, upto in zip(shares, accumulate(shares.values()), strict=True):
        if target < upto:
            return name
    return list(shares)[-1]
