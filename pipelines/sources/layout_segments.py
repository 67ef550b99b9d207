"""tokenmill's own layout, which can say everything: `segments` in any order, caption variants, what is learned.

    {"segments": [{"image": 0}, {"text": "A red box.", "role": "caption"}, {"text": "A box.", "role": "caption",
     "variant": 1}], "images": ["box.png"]}

`images` may be left out: picture n is then the n-th member of the sample. Documents that ingest packs have this layout.
Segments of a preference pair say `"answer": "chosen"` or `"rejected"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from tokenmill.errors import SampleError
from tokenmill.pipelines.sources.laid_out import MOST_PICTURES, Gallery, LaidOut, Reference, learn_of, list_at
from tokenmill.pipelines.sources.raw_document import RawPart, RawPicture, RawText
from tokenmill.tokenize.segments import ANSWERS, ROLES, SPEAKERS, Answer, Role

_ALLOWED = tuple(role for role in ROLES if role != "stretch")  # that one is a clip's, and has seconds
_LAST_VARIANT = 2**15


def segments(value: Mapping[str, Any]) -> LaidOut:
    """Lay out a document in tokenmill's own layout."""
    parts = tuple(_part(item) for item in list_at(value, "segments"))
    if value.get("images") is None:
        numbers = {part.number for part in parts if isinstance(part, RawPicture)}
        references = [Reference(slot=number) for number in range(max(numbers, default=-1) + 1)]
    else:
        parts, references = _by_list(parts, list_at(value, "images"))
    return LaidOut(parts=parts, references=tuple(references), used=frozenset(("segments", "images")))


def segments_json(parts: Sequence[RawPart]) -> list[dict[str, Any]]:
    """Return a document's parts in this layout."""
    return [
        {"image": part.number, "learn": part.learn, **({"role": part.role} if part.role else {}), **_answer_json(part)}
        if isinstance(part, RawPicture)
        else {"text": part.text, "role": part.role, "learn": part.learn, "variant": part.variant, **_answer_json(part)}
        for part in parts
    ]


def _answer_json(part: RawPart) -> dict[str, Any]:
    return {} if part.answer is None else {"answer": part.answer}


def _part(item: Any) -> RawPart:
    if not isinstance(item, Mapping):
        raise SampleError("bad_lists", f"a segment is {type(item).__name__}")
    number, text = item.get("image"), item.get("text")
    if (number is None) == (text is None):
        raise SampleError("bad_lists", "a segment is neither a text nor a picture, or both")
    if text is None:
        if type(number) is not int or not 0 <= number < MOST_PICTURES:
            raise SampleError("bad_lists", f"a segment shows picture {str(number)[:40]!r}")
        role = item.get("role")
        if role is not None and role not in SPEAKERS:
            raise SampleError("unknown_role", f"a picture has role {str(role)[:40]!r}")
        return RawPicture(number=number, learn=learn_of(item, role != "user"), role=role, answer=_answer(item))
    return _text(item, text)


def _text(item: Mapping[str, Any], text: Any) -> RawText:
    role, variant = item.get("role") or "body", item.get("variant") or 0
    if role not in _ALLOWED:
        raise SampleError("unknown_role", f"a segment has role {str(role)[:40]!r}")
    if type(variant) is not int or not 0 <= variant < _LAST_VARIANT or not isinstance(text, str):
        raise SampleError("bad_lists", "a segment's text is none, or its variant no number")
    learn = learn_of(item, role not in ("user", "system"))
    return RawText(text=text, role=cast(Role, role), learn=learn, variant=variant, answer=_answer(item))


def _answer(item: Mapping[str, Any]) -> Answer | None:
    answer = item.get("answer")
    if answer is not None and answer not in ANSWERS:
        raise SampleError("bad_lists", f"a segment has answer {str(answer)[:40]!r}")
    return answer


def _by_list(parts: Sequence[RawPart], images: Sequence[Any]) -> tuple[tuple[RawPart, ...], list[Reference]]:
    """Replace places in a list of pictures by the numbers of the pictures: one may be told twice."""
    gallery = Gallery()
    numbers = [gallery.add(image, slot) for slot, image in enumerate(images)]

    def named(part: RawPart) -> RawPart:
        if isinstance(part, RawText):
            return part
        number = numbers[part.number] if part.number < len(numbers) else None
        if number is None:
            raise SampleError("missing_picture", f"it shows picture {part.number} of {len(numbers)}")
        return replace(part, number=number)

    return tuple(map(named, parts)), gallery.references
