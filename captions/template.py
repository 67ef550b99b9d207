"""The captioner that puts a caption together from what is known of a sample: "{metadata.title}, {metadata.place}".

Asks nobody and needs no pixels; the words are those of the recipe (`prompts.py` says what may stand in braces), cleaned
and shortened as `metadata` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from tokenmill.captions.captioner import Answer, Request, Sample, Takes
from tokenmill.captions.metadata import cleaned, shortened
from tokenmill.captions.prompts import check_template, render
from tokenmill.captions.reading import answers_read
from tokenmill.errors import RecipeError, SampleError
from tokenmill.manifests.identity import digest_of


@dataclass(frozen=True, kw_only=True)
class TemplateCaptioner:
    """Fills templates of the recipe with a sample's fields.

    Args:
        templates: one, or several.
        which: of several, the `first` whose fields the sample has, or `all` of those as wordings of one caption.
        max_chars: longer captions end at the last word before.
        missing: `fail` the sample that no template fits (reason `no_field`), or let its caption be `empty`.
    """

    templates: Annotated[tuple[str, ...], Field(min_length=1)]
    which: Literal["first", "all"] = "first"
    max_chars: Annotated[int, Field(ge=1)] = 2000
    missing: Literal["fail", "empty"] = "fail"

    name: ClassVar = "template"
    version: ClassVar = 1
    takes: ClassVar[Takes] = "text"
    asks: ClassVar = False
    max_side_px: ClassVar = None

    @field_validator("templates", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("templates")
    @classmethod
    def _readable(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            try:
                check_template(template)
            except RecipeError as error:
                raise ValueError(str(error)) from error
        return templates

    @property
    def fingerprint(self) -> str:
        return digest_of({"name": self.name, "version": self.version, "settings": asdict(self)})

    def answers(self, requests: Iterable[Request]) -> Iterator[Sequence[Answer]]:
        """Fill the templates for each sample."""
        return answers_read(requests, self._texts)

    def close(self) -> None:
        """Hold nothing."""

    def _texts(self, sample: Sample) -> tuple[str, ...]:
        found: list[str] = []
        lacking: SampleError | None = None
        for template in self.templates:
            try:
                text = shortened(cleaned(render(template, sample)), self.max_chars)
            except SampleError as error:
                lacking = lacking or error
                continue
            if text and text not in found:
                found.append(text)
            if found and self.which == "first":
                break
        if not found and self.missing == "fail":
            raise lacking or SampleError("no_field", "the templates come to nothing")
        return tuple(found) or ("",)
