"""From a sample to the documents a plan makes of it: whether it is drawn, under which template, or why it is refused.

Every draw is a hash of (plan, sample, repetition, what is drawn), not a generator's next number, so a window's plan
does not depend on which samples came before, and windows can be planned anywhere in any order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from tokenmill.errors import SampleError
from tokenmill.pipelines.plan_long import fitting
from tokenmill.pipelines.plan_spans import Document
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.documents import Segment, TextSegment, document_spans, segments_from_json
from tokenmill.tokenize.templates import LossClass
from tokenmill.tokenize.vocabulary import Vocabulary

_SAYS_NOTHING = ("no_template", "no_page")  # about a sample that other templates refuse too


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """Makes documents of samples, for one plan and one pass over one source."""

    plan_id: str
    source: str
    settings: PlanSettings
    vocabulary: Vocabulary
    repetition: int
    share: float
    had: float = 0.0

    def documents(self, sample: int, row: Mapping[str, Any]) -> list[Document]:
        """Give the documents of one index row, at least one; raises SampleError with the reason it is left out."""
        key = row["key"]
        self._check_drawn(key)
        segments = segments_from_json(json.loads(row["segments"]))
        if not segments:
            raise SampleError("empty", "the sample has no segments")
        variant = self._variant(key, segments)
        template, spans = self._template(key, self._kind(row["modality"], segments), segments, variant)
        document = Document(sample=sample, template=template, variant=variant, spans=spans)
        if document.cuttable or document.length <= self.settings.context:
            return [document]
        return fitting(document, segments, self.settings, self.vocabulary)

    def _check_drawn(self, key: str) -> None:
        name = f"{self.source}/{key}"
        is_held_out = uniform("held out", name) < self.settings.held_out
        if is_held_out != (self.settings.part == "held_out"):
            raise SampleError("held_out" if is_held_out else "training", "belongs to the other part")
        if key in self.settings.exclude:
            raise SampleError("excluded", "on the list of excluded keys")
        if self.had > 0.0 or self.share < 1.0:
            place = share_draw(self.settings.seed, self.source, key, self.repetition)
            if not self.had <= place < self.share:
                raise SampleError("not_drawn", f"this pass takes {self.share - self.had:g} of the source")

    def _variant(self, key: str, segments: Sequence[Segment]) -> int:
        captions = sorted({s.variant for s in segments if isinstance(s, TextSegment) and s.role == "caption"})
        return captions[int(self._draw("variant", key) * len(captions))] if captions else 0

    def _kind(self, modality: str, segments: Sequence[Segment]) -> str:
        """Return whose templates a sample draws from: of captions and pictures alone, a document is an image."""
        roles = {segment.role for segment in segments if isinstance(segment, TextSegment)}
        is_image = modality == "document" and roles == {"caption"} and "image" in self.settings.templates
        return "image" if is_image else modality

    def _template(
        self, key: str, kind: str, segments: Sequence[Segment], variant: int
    ) -> tuple[str, Sequence[tuple[int, LossClass]]]:
        """Draw among the templates that fit the sample; raises why none does.

        Of several SampleErrors it is the first drawn one's; that a conversation is no page explains nothing.
        """
        shares = {name: share for name, share in sorted(self.settings.templates.get(kind, {}).items()) if share > 0}
        refusal = SampleError("no_template", f"the plan has no template for {kind}")
        position = self._draw("template", key)
        while shares:
            name = _pick(shares, position)
            try:
                return name, document_spans(segments, name, self.vocabulary, variant)
            except SampleError as error:
                refusal = error if refusal.reason in _SAYS_NOTHING else refusal
                del shares[name]
        raise refusal

    def _draw(self, what: str, key: str) -> float:
        return uniform(self.plan_id, self.source, key, str(self.repetition), what)


def share_draw(seed: int, source: str, key: str, repetition: int) -> float:
    """Draw a sample's place in a pass over its source: a pass of share s takes those below s, whatever the plan."""
    return uniform("share", str(seed), source, key, str(repetition))


def uniform(*parts: str) -> float:
    """Give a number in [0, 1) that is a pure function of some strings."""
    state = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(state[:7], "big") / 2**56


def _pick(shares: Mapping[str, float], position: float) -> str:
    """Choose a name by share; `position` in [0, 1)."""
    target = position * sum(shares.values())
    for name, upto in zip(shares, accumulate(shares.values()), strict=True):
        if target < upto:
            return name
    return list(shares)[-1]
