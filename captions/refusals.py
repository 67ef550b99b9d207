"""Answers in which the model says that it won't or can't, in ten languages.

A refusal is known by how an answer *begins*: the first person, a verb of not being able or willing, and what captioners
are asked for ("I can't help with", "我无法识别图片"). Words further in say nothing: a sign may read "I'm sorry, we are
closed". The phrases stand in `refusals.yaml`; how often they are right and wrong, in docs/captions.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_LOOKED_AT_CHARS = 400
_LATIN = ("en", "de", "fr", "es", "pt", "it")
_AI = r"(?:ai|a\.i\.|artificial intelligence|(?:large )?language model|text[- ]based|virtual assistant|chatbot|llm)\b"
_GLUE = r"[,.!;: —-]*"
_COURTESY = (
    r"(?:(?:hello|hi|hey|thank|i appreciate|i understand|sure|of course|okay|certainly|i see|(?:i'm|i am) sorry|sorry|"
    r"i apologi|您好|你好|谢谢|謝謝|感谢|感謝|好的|很抱歉|抱歉|对不起|對不起|danke|vielen dank|hallo|"
    r"es tut mir|merci|bonjour|gracias|hola|lo siento|ありがとう|こんにちは|申し訳|すみません|спасибо|здравствуйте|"
    r"извините|простите|obrigad|olá|grazie|ciao|감사합니다|안녕하세요|죄송합니다)"
    r"[^.!?。！？\n]{0,160}[.!?。！？] ?){1,2}|(?:hello|hi|您好|你好)[,，!！ ]+"
    r"|(?:since|because|without|由于|由於|因为|因為) ?[^,，.。]{2,40}[,，] ?|(?:since|because) (?=i )"
)  # fmt: skip


def is_refusal(text: str) -> bool:
    """Tell whether an answer begins as a refusal, be it after a sentence or two of courtesy."""
    head = " ".join(text[:_LOOKED_AT_CHARS].lower().replace("’", "'").split()).lstrip("\"'“„*_#> ")
    pattern = _pattern(_LATIN) if head.isascii() else _pattern(())
    return pattern.match(head) is not None


@cache
def _pattern(languages: Sequence[str]) -> re.Pattern[str]:
    """Compile the beginnings of some languages; none: of all."""
    phrases = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    starts = [start for name in languages or phrases for start in _starts(phrases[name])]
    return re.compile(f"(?:{_COURTESY})?(?:{'|'.join(starts)})")


def _starts(language: Mapping[str, Any]) -> list[str]:
    """Return how refusals of a language begin, as patterns."""
    apology, unable, asked_for = (_any(language[name]) for name in ("apology", "unable", "asked_for"))
    then = f"(?:{language['then']}{_GLUE})*" if "then" in language else ""
    parts = (asked_for, unable) if language.get("reversed") else (unable, asked_for)
    after = [*language["unable"], *language.get("sorry_alone", ()), *language["missing"]]
    starts = [
        f"{apology}{_GLUE}{then}{_any(after)}",
        language["gap"].join(parts),
        *language["itself"],
        *language["missing"],
    ]
    return [start.replace("{picture}", language["picture"]).replace("{ai}", _AI) for start in starts]


def _any(patterns: Sequence[str]) -> str:
    return f"(?:{'|'.join(patterns)})"
