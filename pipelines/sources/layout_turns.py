"""Conversations: LLaVA's `conversations` (`from`, `value`, `<image>`) and OpenAI's `messages` (`role`, `content`).

Both spellings are read under both keys, since data sets mix them. `<image>` in a text shows the next picture of `image`
or `images`. What the assistant says is learned, questions and their pictures are not, unless a turn says otherwise.
Sources: Liu et al., "Visual Instruction Tuning" (arXiv 2304.08485) and its data; OpenAI's chat format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from tokenmill.errors import SampleError
from tokenmill.pipelines.sources.laid_out import Gallery, LaidOut, learn_of, list_at
from tokenmill.pipelines.sources.raw_document import RawPart, RawPicture, RawText
from tokenmill.tokenize.segments import SPEAKERS, Role, Speaker

PLACEHOLDER = "<image>"
_ROLES: dict[str, Role] = {
    "system": "system", "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
}  # fmt: skip


def llava(value: Mapping[str, Any]) -> LaidOut:
    """Lay out a conversation of LLaVA's kind."""
    return _conversation(value, "conversations")


def messages(value: Mapping[str, Any]) -> LaidOut:
    """Lay out a conversation in messages, whose content is a text or a list of texts and pictures."""
    return _conversation(value, "messages")


@dataclass(slots=True)
class Pictures:
    """The pictures of a conversation; `listed` are those that placeholders show, one after the other."""

    gallery: Gallery = field(default_factory=Gallery)
    listed: list[int] = field(default_factory=list)
    shown: int = 0

    def next(self) -> int:
        self.shown += 1
        return self.listed[self.shown - 1] if self.shown <= len(self.listed) else 0

    def check(self) -> None:
        """Raise SampleError unless every listed picture was shown."""
        if self.shown != len(self.listed):
            raise SampleError("placeholder_count", f"{self.shown} placeholders for {len(self.listed)} pictures")


def _conversation(value: Mapping[str, Any], key: str) -> LaidOut:
    if value.get("video"):
        raise SampleError("has_video", "a conversation about a video cannot be read yet")
    pictures = listed_pictures(value)
    parts = [part for turn in list_at(value, key) for part in turn_parts(turn, pictures)]
    pictures.check()
    used = frozenset((key, "image", "images"))
    return LaidOut(parts=tuple(parts), references=tuple(pictures.gallery.references), used=used)


def listed_pictures(value: Mapping[str, Any]) -> Pictures:
    """Read the pictures of `image` or `images`; raises SampleError as `Gallery.add`, `bad_lists`."""
    pictures = Pictures()
    found = value.get("images") if value.get("image") is None else value["image"]
    if not isinstance(found, list | tuple):
        found = [found] if found else []
    for slot, one in enumerate(found):
        number = pictures.gallery.add(one, slot)
        if number is None:
            raise SampleError("bad_lists", f"picture {slot} of the list is none")
        pictures.listed.append(number)
    return pictures


def turn_parts(turn: Any, pictures: Pictures) -> list[RawPart]:
    """Read one turn, a mapping of speaker and what is said; raises SampleError."""
    if not isinstance(turn, Mapping):
        raise SampleError("bad_lists", f"a turn is {type(turn).__name__}")
    speaker = turn.get("from") or turn.get("role")
    role = _ROLES.get(str(speaker).lower())
    if role is None:
        raise SampleError("unknown_role", f"a turn is of {str(speaker)[:40]!r}")
    learn = learn_of(turn, role == "assistant")
    content = turn.get("content") if turn.get("value") is None else turn["value"]
    if isinstance(content, str):
        parts = list(inline_parts(content, role, learn, pictures))
    elif isinstance(content, list | tuple):
        parts = [_piece(piece, role, learn, pictures) for piece in content]
    else:
        raise SampleError("bad_lists", "a turn has neither a text nor a list of parts")
    if not parts:
        raise SampleError("empty_text", "a turn says nothing")
    return parts


def inline_parts(text: str, role: Role, learn: bool, pictures: Pictures) -> Iterator[RawPart]:
    """Cut a text at its placeholders; blanks and line breaks beside one belong to it."""
    pieces = text.split(PLACEHOLDER)
    last = len(pieces) - 1
    for place, piece in enumerate(pieces):
        if place:
            yield RawPicture(number=pictures.next(), learn=learn, role=_speaker(role))
            piece = piece.lstrip()
        piece = piece.rstrip() if place < last else piece
        if piece.strip():
            yield RawText(text=piece, role=role, learn=learn)


def _piece(piece: Any, role: Role, learn: bool, pictures: Pictures) -> RawPart:
    """Read one part of a content list."""
    if not isinstance(piece, Mapping):
        raise SampleError("bad_lists", f"a part of a turn is {type(piece).__name__}")
    kind, text = piece.get("type"), piece.get("text")
    learn = learn_of(piece, learn)
    if kind == "text" or (kind is None and text is not None):
        if not isinstance(text, str):
            raise SampleError("bad_lists", "a part of type text has none")
        return RawText(text=text, role=role, learn=learn)
    if kind not in ("image", "image_url"):
        raise SampleError("unknown_part", f"a part of type {str(kind)[:40]!r}")
    told = next((piece[key] for key in ("image", "image_url", "url", "path", "bytes") if piece.get(key)), None)
    if told is None:
        return RawPicture(number=pictures.next(), learn=learn, role=_speaker(role))
    number = pictures.gallery.add(told, len(pictures.gallery.references))
    if number is None:
        raise SampleError("bad_picture", "a part of type image names none")
    return RawPicture(number=number, learn=learn, role=_speaker(role))


def _speaker(role: Role) -> Speaker | None:
    """Return whose turn a picture stands in; a system's is nobody's."""
    return cast(Speaker, role) if role in SPEAKERS else None
