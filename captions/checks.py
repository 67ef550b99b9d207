"""What is wrong with an answer: the reasons that a caption is none.

Answers are judged as `tidied` returns them, and kept whatever comes out: another threshold judges them anew. All checks
together take 40 µs for a caption of 100 words, 130 with the language; for one of 2 MB 10 ms (`benchmarks/
caption_checks.py`).
"""

from __future__ import annotations

import re
from functools import lru_cache

from tokenmill.captions.echoes import is_echo
from tokenmill.captions.loops import is_loop
from tokenmill.captions.refusals import is_refusal
from tokenmill.errors import RecipeError, SampleError
from tokenmill.languages import identify, known_languages, sampled
from tokenmill.settings_caption import Checks
from tokenmill.words import units_of

REASONS = (
    "empty", "refusal", "loop", "prompt_echo", "cut_off", "too_long", "too_short", "wrong_language",
)  # fmt: skip
"""In the order in which they are looked for; the first is given."""

_CUT_OFF = frozenset({"length", "max_tokens"})
_FILTERED = frozenset({"content_filter", "safety"})
_SAMPLE_BYTES = 180  # on 2,400 texts of eight languages as good as 360, in half the time
_PATTERN_CHARS = 2_000
_NEAR_KIN = {"yue": "zh", "wuu": "zh", "nn": "no", "pcm": "en"}  # what short texts are taken for


def judge(
    text: str,
    *,
    prompt_template: str = "",
    system_template: str = "",
    finish_reason: str = "",
    checks: Checks,
) -> SampleError | None:
    """Return the first thing that is wrong with an answer, None if nothing is.

    Args:
        text: the answer, as `tidied` returns it.
        prompt_template, system_template: what was asked, before it was filled.
        finish_reason: as the engine says it.
        checks: which checks, and their thresholds.
    """
    if not text or text.isspace():
        return SampleError("empty", "the answer says nothing")
    if checks.refusals and (finish_reason.lower() in _FILTERED or _refuses(text, checks)):
        return SampleError("refusal", "the answer is a refusal")
    if checks.loops and is_loop(text, checks.max_repeated):
        return SampleError("loop", "the answer says the same over and over")
    if checks.echoes and is_echo(text, (prompt_template, system_template)):
        return SampleError("prompt_echo", "the answer repeats the prompt")
    return _of_wrong_size(text, finish_reason, checks) or _of_other_language(text, checks)


def check_settings(checks: Checks) -> None:
    """Raise RecipeError for a language that can't be told; loads the model of languages if any are named."""
    unknown = sorted(set(checks.languages) - known_languages()) if checks.languages else []
    if unknown:
        known = ", ".join(sorted(known_languages()))
        raise RecipeError(f"checks.languages: unknown language {unknown[0]!r}; known: {known}")


def _refuses(text: str, checks: Checks) -> bool:
    own = _own_patterns(checks.refusal_patterns)
    return is_refusal(text) or (own is not None and own.search(text[:_PATTERN_CHARS]) is not None)


@lru_cache(maxsize=64)
def _own_patterns(patterns: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(f"(?:{one})" for one in patterns), re.IGNORECASE) if patterns else None


def _of_wrong_size(text: str, finish_reason: str, checks: Checks) -> SampleError | None:
    if checks.cut_off and finish_reason.lower() in _CUT_OFF:
        return SampleError("cut_off", "the answer ends where the limit of tokens was")
    if len(text) > checks.max_chars:
        return SampleError("too_long", f"the answer has more than {checks.max_chars} characters")
    if len(units_of(text)) < checks.min_words:
        return SampleError("too_short", f"the answer has less than {checks.min_words} words")
    return None


def _of_other_language(text: str, checks: Checks) -> SampleError | None:
    if not checks.languages:
        return None
    language, confidence = identify(sampled(text, _SAMPLE_BYTES))
    if language is None or confidence is None or confidence < checks.language_confidence:
        return None
    if {language, _NEAR_KIN.get(language, language)} & set(checks.languages):
        return None
    return SampleError("wrong_language", f"the answer is in language {language}")
