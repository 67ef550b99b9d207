"""What a recipe may say under `caption`: columns of answers, what is asked for each, and which of them are used.

Part of the spine, like `settings_train`: validated in well under two seconds, without any engine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
_OF_THE_MODALITY = ("columns", "use", "seed")


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, protected_namespaces=())


class Prices(Section):
    """What an engine's tokens cost; decides nothing but what is told."""

    input_per_million: float = Field(default=0.0, ge=0)
    output_per_million: float = Field(default=0.0, ge=0)
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")


class Checks(Section):
    """What an answer must not be; what fails is kept and named by its reason, and asked again by --retry-failed."""

    min_words: int = Field(default=1, ge=0)
    max_chars: int = Field(default=8000, ge=1)
    refusals: bool = Field(default=True, description="'I'm sorry, but I can't …' is no caption")
    refusal_patterns: tuple[str, ...] = Field(
        default=(), description="regular expressions; an answer in which one is found is a refusal too"
    )
    echoes: bool = Field(default=True, description="nor is the prompt said again")
    loops: bool = Field(default=True, description="nor the same words over and over")
    max_repeated: float = Field(default=0.5, ge=0, le=1, description="share of a text that was said before in it")
    cut_off: bool = Field(default=True, description="nor what ends where the engine's limit of tokens was")
    languages: tuple[str, ...] = Field(default=(), description="ISO 639-1; none: any")
    language_confidence: float = Field(default=0.5, ge=0, le=1, description="of another language, to fail for it")

    @field_validator("refusal_patterns")
    @classmethod
    def _patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"no regular expression: {pattern!r} ({error})") from error
        return patterns


class CaptionColumn(BaseModel):
    """One kind of caption: who is asked, and for what. Further keys go to the engine.

    Whatever decides about answers makes another column on disk; the column's own name, checks and prices do not.
    """

    model_config = ConfigDict(defer_build=True, extra="allow", frozen=True, protected_namespaces=())

    engine: str = "metadata"
    prompt: tuple[str, ...] = Field(default=(), description="several: one a sample, drawn by its key")
    system: str = ""
    seed: int = 0
    form: Literal["caption", "questions"] = Field(
        default="caption", description="questions: the answer holds pairs of question and answer"
    )
    frames: int = Field(default=12, ge=1, le=256, description="video: of a clip, evenly spread (the paper's 12)")
    long_seconds: float = Field(
        default=20.0, gt=0, description="video: clips this long and longer are asked about in equal stretches"
    )
    checks: Checks = Field(default_factory=Checks)
    prices: Prices = Field(default_factory=Prices)
    sources: dict[Name, dict[str, Any]] = Field(default_factory=dict, description="source → what differs there")

    @field_validator("prompt", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """The engine's own settings."""
        return dict(self.model_extra or {})

    def of_source(self, source: str) -> CaptionColumn:
        """Return the column as one source has it."""
        changes = self.sources.get(source)
        if not changes:
            return self
        return CaptionColumn.model_validate({**self.model_dump(exclude={"sources"}), **changes})


class CaptionSettings(Section):
    """The captions of a modality; `{engine: metadata, …}` without columns is one column called `caption`."""

    columns: dict[Name, CaptionColumn] = Field(default_factory=lambda: {"caption": CaptionColumn()}, min_length=1)
    use: tuple[dict[Name, float], ...] = Field(
        default=(), description="the captions a sample gets, each a column or columns with weights; absent: all columns"
    )
    seed: int = Field(default=0, description="of the draws between columns")

    @model_validator(mode="before")
    @classmethod
    def _single(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "columns" in value:
            return value
        column = {key: one for key, one in value.items() if key not in _OF_THE_MODALITY}
        return {"columns": {"caption": column}, **{key: value[key] for key in _OF_THE_MODALITY if key in value}}

    @field_validator("use", mode="before")
    @classmethod
    def _weighted(cls, value: Any) -> Any:
        """Take `dense` for `{dense: 1}`, and `[dense, original]` for the first of them that is usable."""
        if not isinstance(value, list | tuple):
            return value
        return tuple(_slot(one) for one in value)

    @model_validator(mode="after")
    def _known(self) -> CaptionSettings:
        for slot in self.use:
            if not slot:
                raise ValueError("use: a slot without a column; leave it out")
            for name, weight in slot.items():
                if name not in self.columns or self.columns[name].form != "caption":
                    allowed = ", ".join(key for key, one in self.columns.items() if one.form == "caption")
                    raise ValueError(f"use: no column of captions {name!r}; allowed: {allowed}")
                if not 0 <= weight < math.inf:
                    raise ValueError(f"use: {name} has the weight {weight}; allowed: 0 and more")
        return self

    @property
    def slots(self) -> tuple[dict[str, float], ...]:
        """What a sample gets: one caption a slot, drawn by weight; a weight of 0 only stands in for the others."""
        names = [name for name, column in self.columns.items() if column.form == "caption"]
        return self.use or tuple({name: 1.0} for name in names)


def _slot(value: Any) -> Any:
    if isinstance(value, str):
        return {value: 1.0}
    if isinstance(value, list | tuple) and value:
        return {name: 0.0 if number else 1.0 for number, name in enumerate(value)}
    return value
