"""The captioner that asks nobody: the caption, title or keywords that the source brings along.

Costs nothing and needs no pixels. Text is cleaned (control characters out, white space to single spaces) but not
judged: whether a caption is any good is for the selection rules.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.captions.captioner import Answer, Request, Sample, Takes
from tokenmill.captions.reading import answers_read
from tokenmill.errors import SampleError
from tokenmill.manifests.identity import digest_of

_UNFIT = frozenset({"Cc", "Cs"})  # control characters; halves of surrogate pairs, which UTF-8 can't hold


@dataclass(frozen=True, kw_only=True)
class MetadataCaptioner:
    """Takes the first of some fields that says anything; a list in it gives several variants.

    Args:
        fields: names to try in order, in the sample and then in its `metadata`; `a.b` looks inside `a`.
        keyword_fields: those whose lists are keywords of one caption, not variants.
        keyword_template: what keywords become; `{keywords}` stands for them.
        keyword_joiner: what stands between them.
        max_chars: longer captions end at the last word before.
        max_variants: further variants are left out.
        missing: `fail` the sample (reason `no_caption`), or let its caption be `empty`.
    """

    fields: Annotated[tuple[str, ...], Field(min_length=1)] = ("caption", "title", "keywords")
    keyword_fields: tuple[str, ...] = ("keywords", "tags")
    keyword_template: Annotated[str, Field(pattern=r"\{keywords\}")] = "{keywords}"
    keyword_joiner: str = ", "
    max_chars: Annotated[int, Field(ge=1)] = 2000
    max_variants: Annotated[int, Field(ge=1)] = 8
    missing: Literal["fail", "empty"] = "fail"

    name: ClassVar = "metadata"
    version: ClassVar = 1
    takes: ClassVar[Takes] = "text"
    asks: ClassVar = False
    max_side_px: ClassVar = None

    @property
    def fingerprint(self) -> str:
        return digest_of({"name": self.name, "version": self.version, "settings": asdict(self)})

    def answers(self, requests: Iterable[Request]) -> Iterator[Sequence[Answer]]:
        """Pick each sample's captions."""
        return answers_read(requests, self._texts)

    def close(self) -> None:
        """Hold nothing."""

    def _texts(self, sample: Sample) -> tuple[str, ...]:
        for field in self.fields:
            for place in (sample, sample.get("metadata")):
                captions = list(dict.fromkeys(self._captions(field, _look_up(place, field))))
                if captions:
                    return tuple(captions[: self.max_variants])
        if self.missing == "empty":
            return ("",)
        raise SampleError("no_caption", f"nothing in {', '.join(self.fields)}")

    def _captions(self, field: str, value: Any) -> Iterator[str]:
        texts = [text for text in map(cleaned, value if isinstance(value, list | tuple) else [value]) if text]
        if texts and field in self.keyword_fields:
            texts = [self.keyword_template.replace("{keywords}", self.keyword_joiner.join(dict.fromkeys(texts)))]
        for text in texts:
            yield shortened(text, self.max_chars)


def cleaned(value: Any) -> str:
    """Return text without control characters and with single spaces; empty for what is no text."""
    if not isinstance(value, str):
        return ""
    words = value.split()
    return " ".join(word for word in map(_visible, words) if word)


def shortened(text: str, max_chars: int) -> str:
    """Cut `text` to at most `max_chars`, at a space if there is one."""
    if len(text) <= max_chars:
        return text
    head, space, _ = text[: max_chars + 1].rpartition(" ")
    return head if space else text[:max_chars]


def _visible(word: str) -> str:
    return "".join(char for char in word if unicodedata.category(char) not in _UNFIT)


def _look_up(place: Any, field: str) -> Any:
    for name in field.split("."):
        if not isinstance(place, Mapping):
            return None
        place = place.get(name)
    return place
