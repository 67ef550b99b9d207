"""What one column of captions says of each sample: its good texts, pairs or stretches, or why there are none.

Answers of all records about a slice's files are read and joined to the questions the recipe asks now, so answers to
what is asked no more are simply not seen. Where a question was answered more than once, the newest answer that today's
checks let through is taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from tokenmill.captions.questions_form import Pair, questions_of
from tokenmill.captions.tidying import tidied
from tokenmill.errors import SampleError
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.answers import Records, read_all_answers
from tokenmill.pipelines.caption_worker import judged
from tokenmill.pipelines.questions import Asking, Question

_KEPT_ANSWERS = 200_000  # the slices of a shard come one after the other, and share a reading up to this


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What is said of a part of a long clip; seconds are the film's."""

    start_seconds: float
    end_seconds: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a column says of a sample.

    Attributes:
        texts: wordings of its caption.
        stretches: what the one text was put together from, of a clip that was asked about in parts.
        pairs: questions with their answers.
        error: why nothing of it may be used.
    """

    texts: tuple[str, ...] = ()
    stretches: tuple[Stretch, ...] = ()
    pairs: tuple[Pair, ...] = ()
    error: SampleError | None = None


@dataclass(kw_only=True)
class ColumnAnswers:
    """Reads and judges the answers of a column about one source."""

    asking: Asking
    _read: tuple[Any, pl.DataFrame] | None = None

    def said(
        self, rows: pl.DataFrame, carried: Sequence[str], folder: StageDir, records: Records
    ) -> dict[str, Said]:  # fmt: skip
        """Return what the column says of each of some index rows, by key."""
        questions = list(self.asking.questions(rows, carried))
        requests = [question.request for question in questions]
        asked = pl.DataFrame({"request": requests}, schema={"request": pl.String}).unique()
        found = self._answers(folder, records).join(asked, on="request", how="semi")
        answers: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in found.iter_rows(named=True):
            answers[row["request"]].append(row)
        parts: dict[str, list[Said]] = defaultdict(list)
        for question in questions:
            parts[question.key].append(self._part(question, answers.get(question.request, ())))
        together = _pairs_together if self.asking.column.form == "questions" else _texts_together
        return {key: some[0] if len(some) == 1 else together(some) for key, some in parts.items()}

    def _answers(self, folder: StageDir, records: Records) -> pl.DataFrame:
        name = (folder.path, tuple(records))
        if self._read is not None and self._read[0] == name:
            return self._read[1]
        answers = read_all_answers(folder, records)
        self._read = (name, answers) if answers.height <= _KEPT_ANSWERS else None
        return answers

    def _part(self, question: Question, answers: Sequence[Mapping[str, Any]]) -> Said:
        """Return the best of the answers to one question: of those that may be used the newest."""
        faults = []
        for _, row in sorted(enumerate(answers), key=_worth, reverse=True):
            said = self._answer(question, row)
            if said.error is None:
                return said
            faults.append(said)
        unasked = question.error or SampleError("not_asked", "there is no answer yet")
        return faults[0] if faults else Said(error=unasked)

    def _answer(self, question: Question, row: Mapping[str, Any]) -> Said:
        """Judge an answer."""
        if row["texts"] is None:
            failure = row["fail_reason"], row["fail_message"]
            return Said(error=SampleError(*failure, transient=bool(row["fail_transient"])))
        if not row["texts"]:
            return Said(error=SampleError("empty", "the answer says nothing"))
        texts = tuple(map(tidied, row["texts"]) if self.asking.captioner.asks else row["texts"])
        error = judged(self.asking, question, texts, row["finish_reason"])
        if error is not None:
            return Said(error=error)
        if self.asking.column.form == "questions":
            return _asked_pairs(texts)
        if question.pieces == 1 or question.start_seconds is None or question.end_seconds is None:
            return Said(texts=texts)
        place = {"start_seconds": question.start_seconds, "end_seconds": question.end_seconds}
        return Said(texts=texts, stretches=(Stretch(**place, text=texts[0]),))


def _worth(numbered: tuple[int, Mapping[str, Any]]) -> tuple[int, int]:
    number, row = numbered
    return (2 if row["fail_reason"] is None else 1 if row["texts"] is not None else 0, number)


def _asked_pairs(texts: Sequence[str]) -> Said:
    try:
        return Said(pairs=tuple(pair for text in texts for pair in questions_of(text)))
    except SampleError as error:
        return Said(error=error)


def _texts_together(parts: Sequence[Said]) -> Said:
    """Join what is said of a clip's stretches; where one is missing, nothing true can be said of the whole."""
    for part in parts:
        if part.error is not None:
            return part
    stretches = tuple(stretch for part in parts for stretch in part.stretches)
    return Said(texts=(" ".join(part.texts[0] for part in parts),), stretches=stretches)


def _pairs_together(parts: Sequence[Said]) -> Said:
    """Take the pairs of every stretch that has some: each is true without the others."""
    pairs = tuple(pair for part in parts for pair in part.pairs)
    return Said(pairs=pairs) if pairs else parts[0]
