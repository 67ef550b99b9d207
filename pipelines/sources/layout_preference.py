"""Preference pairs: `chosen` and `rejected`, two answers to one `prompt`, as trainers of DPO (TRL) have them.

    {"prompt": "A red box.", "chosen": {"image": "0.png"}, "rejected": {"image": "1.png"}}
    {"prompt": "Is it <image> red?", "images": ["0.png"], "chosen": "Yes.", "rejected": "No."}
    {"prompt": [{"role": "user", "content": …}], "chosen": [{"role": "assistant", "content": …}], "rejected": […]}

A prompt for pictures is their caption; for texts it is a user's turn, and without a prompt the texts stand alone. Where
the prompt is missing and both answers are conversations, the turns with which both begin are it.
Source: Hugging Face TRL, "Dataset formats and types", preference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenmill.errors import SampleError
from tokenmill.pipelines.sources.laid_out import LaidOut
from tokenmill.pipelines.sources.layout_turns import Pictures, inline_parts, listed_pictures, turn_parts
from tokenmill.pipelines.sources.raw_document import RawPart, RawPicture, RawText
from tokenmill.tokenize.segments import ANSWERS, Answer, Role

_Answers = dict[Answer, Any]
_PICTURE_KEYS = ("image", "bytes", "path", "url")


def preference(value: Mapping[str, Any]) -> LaidOut:
    """Lay out a prompt and two answers."""
    prompt, answers = value.get("prompt"), _Answers((name, value.get(name)) for name in ANSWERS)
    if prompt is None and all(isinstance(one, list | tuple) for one in answers.values()):
        prompt, answers = _shared(answers)
    pictures = listed_pictures(value)
    role = _role(prompt, answers)
    parts = _prompt(prompt, "caption" if role is None else "user", pictures)
    for name in ANSWERS:
        parts += _answer(name, answers[name], role, pictures)
    pictures.check()
    used = frozenset(("prompt", *ANSWERS, "image", "images"))
    return LaidOut(parts=tuple(parts), references=tuple(pictures.gallery.references), used=used)


def _shared(answers: _Answers) -> tuple[list[Any] | None, _Answers]:
    """Cut off the turns with which both conversations begin; each keeps one turn at least."""
    first, second = (answers[name] for name in ANSWERS)
    count = 0
    while count < min(len(first), len(second)) - 1 and first[count] == second[count]:
        count += 1
    return list(first[:count]) or None, {name: answers[name][count:] for name in ANSWERS}


def _role(prompt: Any, answers: _Answers) -> Role | None:
    """Say whose words the answers are: the assistant's in a conversation, else nobody's."""
    is_conversation = isinstance(prompt, list | tuple) or any(isinstance(one, list | tuple) for one in answers.values())
    has_text = any(isinstance(one, str) for one in answers.values())
    return "assistant" if is_conversation or (has_text and prompt is not None) else None


def _prompt(prompt: Any, role: Role, pictures: Pictures) -> list[RawPart]:
    if prompt is None or prompt == "":
        return []
    if isinstance(prompt, str):
        return list(inline_parts(prompt, role, False, pictures))
    if not isinstance(prompt, list | tuple):
        raise SampleError("bad_lists", f"'prompt' is {type(prompt).__name__}, neither a text nor turns")
    return [replace(part, learn=False) for turn in prompt for part in turn_parts(turn, pictures)]


def _answer(name: Answer, value: Any, role: Role | None, pictures: Pictures) -> list[RawPart]:
    """Read one answer: a text, a picture, or turns of the assistant."""
    if isinstance(value, str):
        return [RawText(text=value, role=role or "body", answer=name)]
    if isinstance(value, Mapping) and any(value.get(key) for key in _PICTURE_KEYS):
        number = pictures.gallery.add(value.get("image") or value, len(pictures.gallery.references))
        if number is None:
            raise SampleError("bad_picture", f"{name!r} names no picture")
        return [RawPicture(number=number, role="assistant" if role else None, answer=name)]
    if not isinstance(value, list | tuple) or not value:
        raise SampleError("bad_lists", f"{name!r} is neither a text nor a picture nor turns")
    return _turns(name, value, pictures)


def _turns(name: Answer, turns: Sequence[Any], pictures: Pictures) -> list[RawPart]:
    parts = [part for turn in turns for part in turn_parts(turn, pictures)]
    if any(part.role != "assistant" for part in parts):
        raise SampleError("unknown_role", f"{name!r} has turns of others than the assistant")
    return [replace(part, learn=True, answer=name) for part in parts]
