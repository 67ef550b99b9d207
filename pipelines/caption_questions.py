"""The questions of one unit on their way to an engine and back, few of them in memory at a time.

A question holds its sample with all metadata (5 KB, 100 MB for a unit of 20,000), so only numbers are kept of those
that are to be asked; they are made again when the engine pulls them, and let go with their answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import polars as pl

from tokenmill.captions.captioner import Answer, Request
from tokenmill.errors import RunError, SampleError
from tokenmill.pipelines.caption_pictures import PictureMaker
from tokenmill.pipelines.questions import Asking, Question
from tokenmill.pipelines.selected import Selected

Asked = tuple[Question, Answer]
_SEEN = ("pictures", "frames", "seconds")


@dataclass(kw_only=True)
class UnitQuestions:
    """What a unit asks.

    Attributes:
        places: question → its place among all of the unit, whether asked or not.
        unasked: questions that cannot be put into words, with the reason.
    """

    asking: Asking
    part: Selected
    pictures: PictureMaker | None
    places: dict[str, int] = field(default_factory=dict)
    unasked: list[Asked] = field(default_factory=list)
    _broken: list[Asked] = field(default_factory=list)
    _rows: pl.DataFrame = field(init=False)
    _open: list[int] = field(default_factory=list)  # places in the order of all questions
    _where: list[tuple[int, int | None, int | None]] = field(default_factory=list)  # row and frames of each open one
    _pending: dict[int, Question] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows = self.part.read()

    def find(self, is_open: Callable[[Question], bool]) -> None:
        """Go through all questions and note those to ask."""
        for number, question in enumerate(self._all()):
            if question.request in self.places:
                continue
            self.places[question.request] = len(self.places)
            if not is_open(question):
                continue
            if question.error is not None:
                self.unasked.append((question, Answer(index=number, error=question.error)))
                continue
            self._open.append(number)
            self._where.append((question.row, question.start_frame, question.end_frame))

    def __len__(self) -> int:
        """Return how many are to be asked."""
        return len(self._open)

    def requests(self) -> Iterator[Request]:
        """Yield what is to be asked, with its pictures; what cannot be decoded is in `emptied` instead."""
        if self.pictures is None:
            for number, question in enumerate(self._opened()):
                yield self._request(number, question, {})
            return
        prepared = self.pictures.pictures(self.part.piece, self._seen())
        for number, (question, one) in enumerate(zip(self._opened(), prepared, strict=True)):
            if isinstance(one, SampleError):
                self._broken.append((question, Answer(index=number, error=one)))
                continue
            yield self._request(number, question, {name: getattr(one, name) for name in _SEEN})

    def answered(self, answer: Answer) -> Question:
        """Return the question of an answer and forget it; raises RunError for one that is not open."""
        question = self._pending.pop(answer.index, None)
        if question is None:
            raise RunError(f"engine {self.asking.column.engine}: answered request {answer.index}, which is not open")
        return question

    def emptied(self) -> list[Asked]:
        """Return what could not be decoded since the last call."""
        some = list(self._broken)
        del self._broken[: len(some)]  # the engine may pull in a thread of its own
        return some

    def forgotten(self) -> Iterator[Asked]:
        """Yield the questions that the engine took and never answered."""
        error = SampleError("no_answer", "the engine ended without an answer", transient=True)
        for index in sorted(self._pending):
            yield self._pending.pop(index), Answer(index=index, error=error)

    def _request(self, number: int, question: Question, seen: dict[str, object]) -> Request:
        self._pending[number] = question
        return Request(
            index=number,
            sample=question.sample,
            prompt=question.prompt,
            system=question.system,
            seed=question.seed,
            **seen,  # type: ignore[arg-type]
        )

    def _all(self) -> Iterator[Question]:
        return self.asking.questions(self._rows, self.part.carried())

    def _opened(self) -> Iterator[Question]:
        wanted = iter(self._open)
        following = next(wanted, None)
        for number, question in enumerate(self._all()):
            if number == following:
                yield question
                following = next(wanted, None)

    def _seen(self) -> pl.DataFrame:
        """Return an index row for each question to ask, with the frames it is about."""
        return self._rows[[row for row, _, _ in self._where]].with_columns(
            pl.Series("piece_start_frame", [start for _, start, _ in self._where], pl.Int64),
            pl.Series("piece_end_frame", [end for _, _, end in self._where], pl.Int64),
        )
