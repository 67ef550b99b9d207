"""Are answers right? Exact match by kind and form of question, yes/no as POPE counts it, each beside its chance level.

Two chance levels: the best constant answer (whoever always says the commonest one), and the model's own answers dealt
out to other questions, which also knows how often it says what. Both know of the question what its words tell: its
form, and of a colour the shape that is asked about, since three looks never occur and whoever was trained without
seeing knows that no triangle is red. A model is above chance if it beats both. Only case, blanks around and a full stop
are forgiven: "two" is not "2", and "yes, it is" is not "yes".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.toyworld.judge_chance import AtChance, Chance, Fits, Interval, at_chance, chance, wilson
from benchmarks.toyworld.world import QUESTION_KINDS, SHAPES, Question

SPLITS = ("all", "seen", "unseen")


@dataclass(frozen=True, slots=True, kw_only=True)
class YesNo:
    """POPE's figures; "yes" is what is looked for. An answer that is neither is wrong and no yes."""

    accuracy: float
    precision: float | None
    recall: float | None
    f1: float | None
    yes: float  # share of answers that are yes
    neither: float  # share that are neither yes nor no


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerScore:
    """What a kind (`form` "all") or one form of it scored in a split. `answers`: what was said how often, at most 8."""

    kind: str
    form: str
    split: str
    right: Interval
    constant: float  # the best constant answer to each form, and to each shape whose colour is asked (of seen looks)
    chance: Chance | None
    yes_no: YesNo | None
    answers: dict[str, int]

    @property
    def level(self) -> Chance | None:
        """The chance level that counts: the higher one of the constant answer and of the dealt answers."""
        if self.chance is None or self.constant <= self.chance.mean:
            return self.chance
        high = wilson(self.constant * self.right.n, self.right.n, z=2.575829).high
        return Chance(mean=self.constant, low=self.chance.low, high=max(high, self.chance.high), n=self.right.n)

    def at_chance(self) -> AtChance | None:
        """Compare the score with its chance level."""
        return None if self.level is None else at_chance(self.right.value, self.level)

    def to_json(self) -> dict[str, Any]:
        """Describe it for a machine."""
        return asdict(self)


def plain(answer: str) -> str:
    """Return an answer as it is compared."""
    return answer.strip().rstrip(".").rstrip().casefold()


def score_answers(questions: Sequence[Question], answers: Sequence[str], *, seed: int = 0) -> list[AnswerScore]:
    """Score one answer a question, by kind, form and split; what nobody was asked is left out.

    Raises ValueError unless there is one answer a question.
    """
    if len(questions) != len(answers):
        raise ValueError(f"{len(questions)} questions, {len(answers)} answers")
    scores = []
    for kind in QUESTION_KINDS:
        of_kind = [(one, plain(answer)) for one, answer in zip(questions, answers, strict=True) if one.kind == kind]
        forms = sorted({one.form for one, _ in of_kind})
        for form in ("all", *(forms if len(forms) > 1 else ())):
            for split in SPLITS:
                own = [(one, said) for one, said in of_kind if form in ("all", one.form) and _is_in(split, one)]
                if own:
                    scores.append(_score(kind, form, split, own, seed))
    return scores


def _is_in(split: str, question: Question) -> bool:
    return split == "all" or (split == "unseen") == question.unseen


def _score(kind: str, form: str, split: str, asked: Sequence[tuple[Question, str]], seed: int) -> AnswerScore:
    told: dict[tuple[str, str], list[tuple[Question, str]]] = {}
    for question, answer in asked:
        told.setdefault(_told(question), []).append((question, answer))
    alike = [told[key] for key in sorted(told)]
    most = sum(Counter(plain(one.answer) for one, _ in pairs).most_common(1)[0][1] for pairs in alike)
    truths, said = [plain(one.answer) for one, _ in asked], [answer for _, answer in asked]
    return AnswerScore(
        kind=kind,
        form=form,
        split=split,
        right=wilson(sum(map(str.__eq__, truths, said)), len(asked)),
        constant=most / len(asked),
        chance=chance([_fits(pairs) for pairs in alike], seed=seed),
        yes_no=yes_no(truths, said) if set(truths) <= {"yes", "no"} else None,
        answers=dict(Counter(said).most_common(8)),
    )


def _told(question: Question) -> tuple[str, str]:
    """Return what words tell of an answer to those who were trained: the form, and the shape whose colour is asked.

    Not of unseen looks: what never occurred nobody can have by heart.
    """
    is_named = question.kind == "colour" and not question.unseen
    return question.form, next((shape for shape in SHAPES if is_named and shape in question.text), "")


def _fits(asked: Sequence[tuple[Question, str]]) -> Fits:
    truths = np.array([plain(one.answer) for one, _ in asked])
    return np.asarray(truths[:, None] == np.array([answer for _, answer in asked])[None])


def yes_no(truths: Sequence[str], said: Sequence[str]) -> YesNo:
    """Count as POPE does; precision, recall and F1 are None where there is nothing to divide by."""
    pairs = list(zip(truths, said, strict=True))
    both, asked = pairs.count(("yes", "yes")), sum(truth == "yes" for truth in truths)
    claimed = sum(answer == "yes" for answer in said)
    return YesNo(
        accuracy=sum(truth == answer for truth, answer in pairs) / len(pairs),
        precision=both / claimed if claimed else None,
        recall=both / asked if asked else None,
        f1=2 * both / (claimed + asked) if claimed + asked else None,
        yes=claimed / len(pairs),
        neither=sum(answer not in ("yes", "no") for answer in said) / len(pairs),
    )
