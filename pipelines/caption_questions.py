"""The questions of one unit on their way to an engine and back, few of them in memory at a time.

They are put into words as the engine pulls them: 20 us each, in which nothing would be on the wire if all were made
first (3 % of a run at 1,300 answers a second). A question holds its sample with all metadata (5 KB, 100 MB for a unit
of 20,000), so it is let go with its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

import polars as pl

from tokenmill.captions.captioner import Answer, Request
from tokenmill.errors import RunError, SampleError
from tokenmill.pipelines.caption_pictures import PictureMaker, Prepared
from tokenmill.pipelines.questions import Asking, Question
from tokenmill.pipelines.selected import Selected

Asked = tuple[Question, Answer]
_AT_ONCE = 1000  # questions with pictures: some more than any engine works on


@dataclass(kw_only=True)
class UnitQuestions:
    """What a unit asks.

    Attributes:
        is_open: tells whether a question has to be asked.
        places: question → its place among all of the unit, whether asked or not; complete once all were pulled.
        num_asked: how many were put to the engine, or would have been but for their pictures.
    """

    asking: Asking
    part: Selected
    pictures: PictureMaker | None
    is_open: Callable[[Question], bool]
    places: dict[str, int] = field(default_factory=dict)
    num_asked: int = 0
    _emptied: list[Asked] = field(default_factory=list)
    _pending: dict[int, Question] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows = self.part.read()
        self._open: Iterator[Question] = self._walk()

    def __len__(self) -> int:
        """Return how many samples the unit has."""
        return self._rows.height

    def any_open(self) -> bool:
        """Say whether there is anything (more) to ask."""
        following = list(islice(self._open, 1))
        self._open = chain(following, self._open)
        return bool(following)

    def requests(self) -> Iterator[Request]:
        """Yield what is to be asked, with its pictures; what cannot be put into words or be decoded is in `emptied`."""
        for number, (question, one) in enumerate(self._prepared()):
            if isinstance(one, SampleError):
                self._emptied.append((question, Answer(index=number, error=one)))
                continue
            self._pending[number] = question
            yield Request(
                index=number,
                sample=question.sample,
                prompt=question.prompt,
                system=question.system,
                seed=question.seed,
                pictures=one.pictures,
                frames=one.frames,
                seconds=one.seconds,
            )

    def answered(self, answer: Answer) -> Question:
        """Return the question of an answer and forget it; raises RunError for one that is not open."""
        question = self._pending.pop(answer.index, None)
        if question is None:
            raise RunError(f"engine {self.asking.column.engine}: answered request {answer.index}, which is not open")
        return question

    def emptied(self) -> list[Asked]:
        """Return what could not be put into words or be decoded since the last call."""
        some = list(self._emptied)
        del self._emptied[: len(some)]  # the engine may pull in a thread of its own
        return some

    def forgotten(self) -> Iterator[Asked]:
        """Yield the questions that the engine never pulled, or took and never answered."""
        error = SampleError("no_answer", "the engine ended without an answer", transient=True)
        for question in (*self._pending.values(), *self._open):
            yield question, Answer(index=0, error=error)
        self._pending.clear()

    def _walk(self) -> Iterator[Question]:
        """Yield the questions to ask."""
        for question in self.asking.questions(self._rows, self.part.carried()):
            if question.request in self.places:
                continue
            self.places[question.request] = len(self.places)
            if not self.is_open(question):
                continue
            if question.error is not None:
                self._emptied.append((question, Answer(index=0, error=question.error)))
                continue
            self.num_asked += 1
            yield question

    def _prepared(self) -> Iterator[tuple[Question, Prepared | SampleError]]:
        """Yield the questions to ask with what they show; pictures are made ahead, some questions at a time."""
        if self.pictures is None:
            yield from ((question, Prepared()) for question in self._open)
            return
        while some := list(islice(self._open, _AT_ONCE)):
            yield from zip(some, self.pictures.pictures(self.part.piece, self._seen(some)), strict=True)

    def _seen(self, questions: Sequence[Question]) -> pl.DataFrame:
        """Return an index row for each question, with the frames it is about."""
        return self._rows[[question.row for question in questions]].with_columns(
            pl.Series("piece_start_frame", [question.start_frame for question in questions], pl.Int64),
            pl.Series("piece_end_frame", [question.end_frame for question in questions], pl.Int64),
        )
