"""What goes over the wire: a request as JSON bytes, and what an answer's bytes say.

Pictures are set into the body as base64 bytes between ready-made pieces, never as text through a JSON encoder: 0.20 ms
for a picture of 200 kB instead of 0.52 ms. In the caller's thread: base64 holds the interpreter wherever it runs.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenmill.captions.captioner import Request
from tokenmill.captions.openai_secrets import told
from tokenmill.errors import SampleError

_THOUGHTS = re.compile(r"\A\s*(?:<think>)?.*?</think>\s*", re.DOTALL)
_SEEDS = 2**31  # llama.cpp's are 32 bits wide
_MOST_TOKENS = 10**9
_LONGEST_NAME_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request ready to be sent: its number for the caller, its body, and whether pictures are in it."""

    index: int
    body: bytes
    has_pictures: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer: a text, or why there is none in it (`error`), which asking again would not change."""

    text: str = ""
    error: SampleError | None = None
    model: str = ""
    finish_reason: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


class BrokenAnswer(Exception):  # noqa: N818  # never leaves the engine
    """What came is no answer of this protocol; `reason` as in openai_faults."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


class QuestionWriter:
    """Writes requests' bodies; `common` is what all of them say: model, limits, sampling."""

    def __init__(self, common: Mapping[str, Any], *, detail: str | None, sends_seed: bool) -> None:
        self._common = _json(common)[:-1]
        self._end_of_picture = b'"' + (b',"detail":' + _json(detail) if detail else b"") + b"}}"
        self._sends_seed = sends_seed

    def question(self, request: Request) -> Question:
        """Return a request as it is sent: the pictures first, in their order, then the prompt."""
        return Question(index=request.index, body=self._body(request), has_pictures=bool(request.pictures))

    def _body(self, request: Request) -> bytes:
        seed = b',"seed":%d' % (request.seed % _SEEDS) if self._sends_seed else b""
        parts = [self._common, seed, b',"messages":[']
        if request.system:
            parts += [b'{"role":"system","content":', _json(request.system), b"},"]
        parts.append(b'{"role":"user","content":')
        if request.pictures:
            for number, picture in enumerate(request.pictures):
                kind = picture.media_type.encode()
                opening = b'{"type":"image_url","image_url":{"url":"data:' + kind + b";base64,"
                parts += [b"," if number else b"[", opening, base64.b64encode(picture.data), self._end_of_picture]
            parts += [b',{"type":"text","text":', _json(request.prompt), b"}]"]
        else:
            parts.append(_json(request.prompt))
        parts.append(b"}]}")
        return b"".join(parts)


def read_answer(data: bytes) -> Reply:
    """Read a completion; raises BrokenAnswer for what is none (`invalid_answer`) or has no choice (`empty_answer`)."""
    answer = as_object(data)
    choices = answer.get("choices")
    if not isinstance(choices, list):
        raise BrokenAnswer("invalid_answer", "the server's JSON is no completion")
    if not choices:
        raise BrokenAnswer("empty_answer", "the answer has no choices")
    choice = choices[0] if isinstance(choices[0], dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        raise BrokenAnswer("invalid_answer", "the answer's choice has no message")
    text, finish_reason = _text(message.get("content")), _name(choice.get("finish_reason"))
    usage = answer.get("usage")
    return Reply(
        text=text,
        error=_unusable(message, text, finish_reason),
        model=model_name(answer.get("model")),
        finish_reason=finish_reason,
        input_tokens=_tokens(usage, "prompt_tokens"),
        output_tokens=_tokens(usage, "completion_tokens"),
    )


def as_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`; raises BrokenAnswer if there is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    is_page = data.lstrip()[:1] == b"<"
    raise BrokenAnswer("invalid_answer", "a page instead of JSON" if is_page else "what came is no JSON object")


def _unusable(message: Mapping[str, Any], text: str, finish_reason: str) -> SampleError | None:
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal.strip():
        return SampleError("refusal", told(refusal))
    if finish_reason == "content_filter":
        return SampleError("content_filter", "the server's filter held the answer back")
    if not text:
        return SampleError("empty_answer", f"the answer holds no text ({finish_reason or 'no finish_reason'})")
    return None


def _text(content: Any) -> str:
    """Return an answer's words: plain or in parts, without what a model thought before."""
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") != "reasoning"]
        content = "".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str):
        return ""
    text: str = content
    if "</think>" in text:
        text = _THOUGHTS.sub("", text, count=1)
    elif text.lstrip().startswith("<think>"):
        return ""  # cut off while it thought
    return text.strip().encode("utf-8", "replace").decode()  # halves of surrogate pairs can't be stored


def _tokens(usage: Any, name: str) -> int:
    number = usage.get(name) if isinstance(usage, dict) else None
    return number if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < _MOST_TOKENS else 0


def model_name(value: Any) -> str:
    """Return a model's name; of llama.cpp's, which is a path on its machine, the file's."""
    name = _name(value)
    return name.rpartition("/")[2] if name.startswith("/") else name


def _name(value: Any) -> str:
    text = value[:_LONGEST_NAME_CHARS] if isinstance(value, str) else ""
    return text if text.isprintable() else "".join(char for char in text if char.isprintable())


def _json(value: Any) -> bytes:
    return _ENCODER.encode(value).encode()


_ENCODER = json.JSONEncoder(separators=(",", ":"))  # built once: building it costs as much as a prompt
