"""Preference pairs on stored tokens: what makes two answers a pair that can teach something (EMU3.md §5).

A pair holds tokens, never pictures that are encoded again: Emu3's DPO trains on the very codes that were generated,
since encoding a decoded picture gives other codes and so another answer than the one that was judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.tokenize.segments import ANSWERS, Answer, Segment, TextSegment

_Shown: TypeAlias = tuple[tuple[int, ...], NDArray[np.integer[Any]]]  # of a picture its grid, of a text nothing; ids


def check_pair(
    segments: Sequence[Segment], text_ids: NDArray[np.integer[Any]] | None, codes: NDArray[np.integer[Any]] | None
) -> None:
    """Refuse answers that teach nothing; samples that are no pairs pass. Arrays are those of the sample, any shape.

    Raises:
        SampleError: `no_pair` where an answer is missing, `empty_answer`, `equal_answers`.
    """
    if all(segment.answer is None for segment in segments):
        return
    shown = {answer: _shown(segments, answer, text_ids, codes) for answer in ANSWERS}
    sizes = {answer: sum(len(ids) for _, ids in parts) for answer, parts in shown.items()}
    for answer in ANSWERS:
        if not shown[answer]:
            raise SampleError("no_pair", f"a preference pair needs two answers; {answer} is missing")
        if not sizes[answer]:
            raise SampleError("empty_answer", f"the {answer} answer holds no id")
    first, second = (shown[answer] for answer in ANSWERS)
    if len(first) == len(second) and all(map(_is_equal, first, second)):
        told = " and ".join(f"{answer} ({sizes[answer]} ids)" for answer in ANSWERS)
        raise SampleError("equal_answers", f"{told} are the same, which prefers nothing")


def _shown(
    segments: Sequence[Segment],
    answer: Answer,
    text_ids: NDArray[np.integer[Any]] | None,
    codes: NDArray[np.integer[Any]] | None,
) -> list[_Shown]:
    """Give what each segment of an answer shows."""
    found: list[_Shown] = []
    for one in segments:
        if one.answer != answer:
            continue
        if isinstance(one, TextSegment):
            found.append(((), _flat(text_ids)[one.start : one.end]))
        else:
            found.append(((one.t, one.h, one.w), _flat(codes)[one.offset : one.offset + one.num_codes]))
    return found


def _flat(ids: NDArray[np.integer[Any]] | None) -> NDArray[np.integer[Any]]:
    return np.zeros(0, np.uint32) if ids is None else ids.reshape(-1)


def _is_equal(one: _Shown, other: _Shown) -> bool:
    return one[0] == other[0] and np.array_equal(one[1], other[1])
