"""What a layout makes of a document's JSON: parts in order, and how the JSON names the pictures they show.

Nothing is repaired: what contradicts itself is a SampleError with its own reason, because a page whose pictures stand
beside the wrong texts teaches worse than one page fewer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokenmill.errors import SampleError
from tokenmill.pipelines.sources.raw_document import RawPart, RawPicture, RawText
from tokenmill.tokenize.segments import ANSWERS

MOST_PICTURES = 1024  # of a document
MOST_BYTES = 512 * 2**20  # of a document's pictures, encoded
_LEARN_KEYS = ("learn", "loss", "weight")  # tokenmill's own, and what others call it


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A picture as a JSON speaks of it.

    Attributes:
        names: file names or URLs, the surest first; empty where it is told by its number alone.
        slot: its place in the list that it was told in, gaps counted.
        data: its encoded bytes, where a table holds them.
    """

    names: tuple[str, ...] = ()
    slot: int = 0
    data: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaidOut:
    """A document: `parts` show `references` by their number; `used` names the keys of the JSON that became them."""

    parts: tuple[RawPart, ...]
    references: tuple[Reference, ...]
    used: frozenset[str]


@dataclass(slots=True)
class Gallery:
    """Numbers the pictures of a document; one that is told twice by the same name is one picture."""

    references: list[Reference] = field(default_factory=list)
    _numbers: dict[tuple[str, ...], int] = field(default_factory=dict)

    def add(self, value: Any, slot: int) -> int | None:
        """Return the number of the picture that a value tells; None where it tells none.

        Raises SampleError `bad_picture` for what no layout tells a picture by, `too_many_pictures`.
        """
        reference = _reference(value, slot)
        if reference is None:
            return None
        if reference.data is None and reference.names in self._numbers:
            return self._numbers[reference.names]
        if len(self.references) == MOST_PICTURES:
            raise SampleError("too_many_pictures", f"more than {MOST_PICTURES}")
        self.references.append(reference)
        number = len(self.references) - 1
        return self._numbers.setdefault(reference.names, number) if reference.data is None else number


def _reference(value: Any, slot: int) -> Reference | None:
    """Read a picture: a name or URL, bytes, or Hugging Face's mapping of bytes and path."""
    if isinstance(value, Mapping):
        names = tuple(str(value[key]) for key in ("path", "image_name", "url", "raw_url") if value.get(key))
        data = value.get("bytes")
        if not names and not data:
            return None
        value = data or None
    elif isinstance(value, str):
        names, value = (value.strip(),) if value.strip() else (), None
    else:
        names = ()
    if value is not None and not isinstance(value, bytes):
        raise SampleError("bad_picture", f"a picture is told by {type(value).__name__}")
    return Reference(names=names, slot=slot, data=value) if names or value else None


def check_bytes(total: int) -> None:
    """Raise SampleError where a document's pictures are more than a worker is to hold."""
    if total > MOST_BYTES:
        raise SampleError("too_large", f"its pictures have more than {MOST_BYTES} bytes")


def learn_of(item: Mapping[str, Any], usual: bool) -> bool:
    """Return what a JSON says about learning a part (`learn`, `loss`, `weight`), or what is usual."""
    for key in _LEARN_KEYS:
        value = item.get(key)
        if value is None:
            continue
        if value not in (0, 1):  # True and False are
            raise SampleError("bad_flag", f"{key} is neither true nor false")
        return bool(value)
    return usual


def list_at(value: Mapping[str, Any], key: str) -> Sequence[Any]:
    """Return a list of a JSON; raises SampleError `bad_lists` where there is none."""
    found = value.get(key)
    if not isinstance(found, list | tuple):
        raise SampleError("bad_lists", f"{key!r} is no list")
    return found


def check_laid_out(laid: LaidOut) -> LaidOut:
    """Return a document that can be learned; raises SampleError with the reason why it cannot."""
    if not laid.parts:
        raise SampleError("no_content", "it has neither text nor picture")
    for part in laid.parts:
        if isinstance(part, RawText):
            _check_text(part.text)
    _check_shown(laid)
    for parts in documents_of(laid.parts):
        _check_turns(parts)
    if not any(part.learn for part in laid.parts):
        raise SampleError("nothing_to_learn", "none of its parts is to be learned")
    return laid


def documents_of(parts: Sequence[RawPart]) -> list[Sequence[RawPart]]:
    """Return the documents that parts make: of a preference pair two, the prompt with either answer.

    Raises SampleError `no_pair` where an answer is missing, `equal_answers` where both are the same.
    """
    answers = [[part for part in parts if part.answer == answer] for answer in ANSWERS]
    if not any(answers):
        return [parts]
    for name, found in zip(ANSWERS, answers, strict=True):
        if not found:
            raise SampleError("no_pair", f"a preference pair needs two answers; {name} is missing")
    if [replace(part, answer=None) for part in answers[0]] == [replace(part, answer=None) for part in answers[1]]:
        raise SampleError("equal_answers", f"{' and '.join(ANSWERS)} are the same, which prefers nothing")
    prompt = [part for part in parts if part.answer is None]
    return [[*prompt, *answer] for answer in answers]


def _check_text(text: str) -> None:
    if not text.strip():
        raise SampleError("empty_text", "one of its texts is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SampleError("bad_encoding", "a text holds half of a surrogate pair") from error


def _check_shown(laid: LaidOut) -> None:
    shown = {part.number for part in laid.parts if isinstance(part, RawPicture)}
    if lost := [number for number in range(len(laid.references)) if number not in shown]:
        raise SampleError("unshown_picture", f"picture {lost[0]} is nowhere shown")
    if shown and max(shown) >= len(laid.references):
        raise SampleError("missing_picture", f"it shows picture {max(shown)} of {len(laid.references)}")


def _check_turns(parts: Sequence[RawPart]) -> None:
    """Check that who asks gets an answer, which may be a picture that is learned."""
    roles = [part.role for part in parts if isinstance(part, RawText)]
    if not {"user", "assistant", "system"}.intersection(roles):
        return
    turns = [part.role if isinstance(part, RawText) else "assistant" for part in parts if _may_answer(part)]
    if "assistant" not in turns:
        raise SampleError("no_answer", "a conversation without an answer")
    if turns[-1] != "assistant":
        raise SampleError("unanswered_end", "the conversation ends without an answer")


def _may_answer(part: RawPart) -> bool:
    if isinstance(part, RawText):
        return True
    return part.learn if part.role is None else part.role == "assistant"
