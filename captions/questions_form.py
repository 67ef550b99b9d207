"""Pairs of question and answer in what a model wrote: JSON, or lines `Q: …` and `A: …`.

Models are asked for one form and give another: JSON in a code fence, after a sentence, cut off in the middle; numbered
lines, bold ones, in other languages. Whatever pairs are whole are taken. A hostile answer costs 0.1 s at most.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenmill.captions.tidying import tidied
from tokenmill.errors import SampleError

READ_CHARS = 100_000
MAX_PAIRS = 64
MAX_QUESTION_CHARS, MAX_ANSWER_CHARS = 2_000, 8_000
_MAX_FAILURES = 200  # at braces, of which each may be the beginning of an object
_MAX_DEPTH = 4

_QUESTION = ("question", "q", "问题", "问", "問題", "問", "質問", "frage", "pregunta", "вопрос")
_ANSWER = ("answer", "a", "答案", "答", "回答", "réponse", "antwort", "respuesta", "ответ")
_LISTS = ("questions", "pairs", "qa", "qa_pairs", "items", "data")
_NUMBER = r"(?:[-*•#>]+ ?)?(?:\(?\d{1,3}[.):、] ?)?"
_LABELLED = re.compile(
    rf"^{_NUMBER}(?:\*\*|__)?{_NUMBER}(?:(?P<q>{'|'.join(_QUESTION)})|(?P<a>{'|'.join(_ANSWER)})) ?\d{{0,3}} ?"
    rf"(?:\*\*|__)? ?(?:[:：]|(?<=\d)\.) ?(?:\*\*|__)?(?P<rest>.*)$",
    re.IGNORECASE,
)
_ASKED = re.compile(rf"^{_NUMBER}(?:\*\*|__)?(?P<rest>.*[?？])(?:\*\*|__)?$")
_ANSWER_INSIDE = re.compile(
    rf"(?:(?<=[.!?。？])|(?<=[.!?。？] )|(?<=[.!?。？]\*\* ))(?=(?:\*\*)?(?:{'|'.join(_ANSWER)}) ?\d{{0,3}}(?:\*\*)? ?[:：])",
    re.IGNORECASE,
)


Pair = tuple[str, str]


def questions_of(text: str) -> tuple[Pair, ...]:
    """Return the distinct pairs of an answer, in its order, at most 64.

    Raises:
        SampleError: `no_questions`, there is not one whole pair.
    """
    text = tidied(text[:READ_CHARS])
    found: dict[str, Pair] = {}
    for pair in _of_json(text) if "{" in text or text.startswith("[") else ():
        _add(found, pair)
    if not found:
        for pair in _of_lines(text):
            _add(found, pair)
    if not found:
        raise SampleError("no_questions", "the answer holds no pair of question and answer")
    return tuple(found.values())


def _add(found: dict[str, Pair], pair: tuple[Any, Any]) -> None:
    question, answer = (_plain(one) for one in pair)
    if question and answer and len(found) < MAX_PAIRS:
        found.setdefault(question, (question[:MAX_QUESTION_CHARS].rstrip(), answer[:MAX_ANSWER_CHARS].rstrip()))


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return tidied(value if isinstance(value, str) else str(value) if isinstance(value, int | float) else "")


def _of_json(text: str) -> Iterator[tuple[Any, Any]]:
    """Yield the pairs of a text that is JSON, else of every whole object in it."""
    whole = _decoded(text, 0)
    if whole is not None and whole[1] == len(text):
        yield from _of_value(whole[0])
        return
    place, failures = text.find("{"), 0
    while place >= 0 and failures < _MAX_FAILURES:
        inner = _decoded(text, place)
        if inner is None:
            failures += 1
        else:
            yield from _of_value(inner[0])
        place = text.find("{", inner[1] if inner else place + 1)


def _decoded(text: str, place: int) -> tuple[Any, int] | None:
    try:
        return _DECODER.raw_decode(text, place)
    except (ValueError, RecursionError):
        return None


def _of_value(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yield the pairs of a list of objects or of lists of two, or of an object that is or holds one of these."""
    if isinstance(value, Mapping):
        names = {str(name).strip().lower(): one for name, one in value.items()}
        question, answer = (
            next((names[name] for name in known if name in names), None) for known in (_QUESTION, _ANSWER)
        )
        if question is not None and answer is not None:
            yield question, answer
            return
        value = next((names[name] for name in _LISTS if isinstance(names.get(name), list)), None)
    for one in value if isinstance(value, list) else ():
        if isinstance(one, Mapping) and depth < _MAX_DEPTH:
            yield from _of_value(one, depth + 1)
        elif isinstance(one, list) and len(one) == 2:
            yield one[0], one[1]


def _of_lines(text: str) -> Iterator[Pair]:
    question: list[str] = []
    answer: list[str] | None = None
    for line in _lines(text):
        labelled = _LABELLED.match(line)
        opened = labelled if labelled and labelled["q"] else None
        if labelled is None and (answer is not None or not question):
            opened = _ASKED.match(line)
        if opened:
            yield _joined(question), _joined(answer)
            question, answer = [opened["rest"]], None
        elif labelled:
            answer = [labelled["rest"]]
        elif answer is not None:
            answer.append(line)
        elif question and line and question[-1].endswith(("?", "？")) and not line.endswith(("?", "？")):
            answer = [line]
        elif question:
            question.append(line)
    yield _joined(question), _joined(answer)


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a text, a question and an answer on the same line as two."""
    for line in text.splitlines():
        yield from (part.strip() for part in _ANSWER_INSIDE.split(line, maxsplit=1))


def _joined(lines: Sequence[str] | None) -> str:
    return " ".join(line for line in lines or () if line)


_DECODER = json.JSONDecoder()
