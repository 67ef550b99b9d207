"""A document as its source tells it: texts and pictures in their order, before anything is tokenized.

Pages, conversations and captioned pictures are one thing here; what a layout (OBELICS, MMC4, LLaVA, …) calls them is
known to the layout alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tokenmill.tokenize.segments import Answer, Role, Speaker


@dataclass(frozen=True, slots=True, kw_only=True)
class RawText:
    """A text; `learn` says whether a model is to learn it, `variant` numbers alternative captions.

    `answer` says of which answer of a preference pair it is.
    """

    text: str
    role: Role = "body"
    learn: bool = True
    variant: int = 0
    answer: Answer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RawPicture:
    """Picture `number` of the document's own, from 0; one may be shown more than once.

    `role` says in whose turn of a conversation it is shown; `answer` is as that of a text.
    """

    number: int
    learn: bool = True
    role: Speaker | None = None
    answer: Answer | None = None


RawPart: TypeAlias = RawText | RawPicture


@dataclass(frozen=True, slots=True, kw_only=True)
class RawDocument:
    """Parts in order, and the encoded bytes (JPEG, PNG, …) of the pictures they show."""

    parts: Sequence[RawPart]
    pictures: Sequence[bytes] = ()
