"""Whether an answer is a caption at all."""

from __future__ import annotations

from tokenmill.errors import SampleError
from tokenmill.settings_caption import Checks


def judge(text: str, *, template: str, system: str, finish_reason: str, checks: Checks) -> SampleError | None:
    """Return what is wrong with an answer, or None; `template` is the prompt before it was filled."""
    if not text.strip():
        return SampleError("empty", "the answer says nothing")
    return None


def tidied(text: str) -> str:
    """Return an answer as a caption is stored."""
    return " ".join(text.split())
