"""Prompts: words of the recipe in which `{…}` stands for what is known of a sample."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenmill.captions.captioner import Sample
from tokenmill.errors import SampleError

_FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.-]*)\}")


def render(template: str, sample: Sample) -> str:
    """Fill a template: `{caption}`, `{metadata.title}`; raises SampleError (`no_field`) for what a sample lacks."""
    return _FIELD.sub(lambda found: _shown(sample, found[1]), template)


def _shown(sample: Sample, name: str) -> str:
    value: Any = sample
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None or value == "":
        raise SampleError("no_field", f"the prompt needs {name}")
    return str(value)


def drawn_prompt(prompts: Sequence[str], key: str, seed: int) -> str:
    """Return the one of several prompts that a sample gets, by its key."""
    return prompts[_number(f"prompt {seed} {key}") % len(prompts)]


def request_seed(seed: int, key: str, piece: int = 0) -> int:
    """Return the seed of a question, in [0, 2**31)."""
    return _number(f"seed {seed} {piece} {key}") % 2**31


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
