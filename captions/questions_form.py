"""Answers that hold pairs of question and answer."""

from __future__ import annotations

import json

from tokenmill.errors import SampleError

Pair = tuple[str, str]


def questions_of(text: str) -> tuple[Pair, ...]:
    """Read the pairs of a JSON list of `{"question": …, "answer": …}`; raises SampleError (`no_questions`)."""
    try:
        return tuple((str(one["question"]), str(one["answer"])) for one in json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise SampleError("no_questions", "the answer holds no questions") from error
