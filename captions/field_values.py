"""What is known of a sample, as words in a prompt: harmless whatever the source holds.

Values are data of strangers that a model reads next to our own words. So each is one line of at most 2,000 characters,
without control characters, invisible "tag" letters or overrides of direction, and what might be a model's own markers
(`<|im_end|>`, `<image>`, `[INST]`) is taken apart by spaces: tokenizers of servers would read it as such. That nobody
obeys what a value *says* can't be promised.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tokenmill.captions.captioner import Sample

MAX_VALUE_CHARS = 2_000
_READ_CHARS = 4 * MAX_VALUE_CHARS  # of a text before it is cleaned
_MAX_DEPTH, _MAX_ITEMS = 4, 256
_CONTROL = "\x00-\x1f\x7f-\x9f\u2028\u2029"
_INVISIBLE = "\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
_TO_SPACE = re.compile(f"[{_CONTROL}]")
_TO_NOTHING = re.compile(f"[{_INVISIBLE}]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKER = re.compile(r"<([^<>\s]{1,64})>|\[(/?[A-Z_]{2,32})\]")


def look_up(sample: Sample, name: str) -> Any:
    """Return what a dotted name stands for, None where the sample has no such thing."""
    value: Any = sample
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def shown(value: Any) -> str:
    """Return a value as one line: numbers with six digits, lists joined by ", ", mappings as `name: value; …`.

    Empty for what says nothing: None, not-a-number, empty texts and lists, and anything else than those.
    """
    return " ".join(_harmless(_plain(value, 0)).split())[:MAX_VALUE_CHARS].rstrip()


def _plain(value: Any, depth: int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value[:_READ_CHARS].strip()
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 256 else ""
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    if depth == _MAX_DEPTH:
        return ""
    if isinstance(value, Mapping):
        return "; ".join(_bounded(f"{name}: {text}" for name, one in value.items() if (text := _plain(one, depth + 1))))
    if isinstance(value, list | tuple):
        return ", ".join(_bounded(text for one in value if (text := _plain(one, depth + 1))))
    return ""


def _bounded(texts: Iterator[str]) -> Iterator[str]:
    size = 0
    for number, text in enumerate(texts):
        if size > _READ_CHARS or number == _MAX_ITEMS:
            return
        size += len(text)
        yield text


def _harmless(text: str) -> str:
    text = _TO_NOTHING.sub("", _TO_SPACE.sub(" ", text))
    return _MARKER.sub(_apart, _SURROGATE.sub("�", text))


def _apart(found: re.Match[str]) -> str:
    inside = found[1] or found[2]
    opened, closed = found[0][0], found[0][-1]
    return f"{opened} {inside} {closed}"
