"""The ids a model is asked to continue: the training templates, cut where the answer begins.

Built from the same templates as training (tokenize/templates.py), so a prompt cannot drift from what was learned.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenmill.tokenize.documents import Segment, TextSegment, VisionSegment, assemble
from tokenmill.tokenize.templates import vision_opening
from tokenmill.tokenize.vocabulary import Vocabulary

NO_CODES = np.zeros(0, np.uint32)


def drawing_prompt(vocabulary: Vocabulary, text: str, picture: VisionSegment) -> NDArray[np.int32]:
    """Give `BOS text SOV meta SOT`: what comes next is a picture or clip of that grid.

    With an empty text it is the unconditional prompt of guidance.
    """
    ids = [vocabulary.bos, *vocabulary.text.encode(text), *vision_opening(picture, vocabulary)]
    return np.array(ids, np.int32)


def seeing_prompt(
    vocabulary: Vocabulary, codes_THW: NDArray[np.uint32], fps: float | None = None, seconds: float | None = None
) -> NDArray[np.int32]:
    """Give `BOS SOV meta SOT vision EOV`: what comes next is the caption."""
    picture = _picture(codes_THW, fps, seconds)
    return assemble([picture], NO_CODES, codes_THW.reshape(-1), "unconditional", vocabulary).ids[:-1]


def question_prompt(
    vocabulary: Vocabulary,
    question: str,
    codes_THW: NDArray[np.uint32] | None = None,
    fps: float | None = None,
    seconds: float | None = None,
    *,
    system: str = "",
) -> NDArray[np.int32]:
    """Give the chat template up to `ASSISTANT:`, with the picture or clip before the question.

    Without `system` its place is taken by the sentence the template has for it.
    """
    system_ids, question_ids = vocabulary.text.encode(system), vocabulary.text.encode(question)
    start, end = len(system_ids), len(system_ids) + len(question_ids)
    segments: list[Segment] = [TextSegment(0, start, "system")] if system else []
    codes = NO_CODES
    if codes_THW is not None:
        segments.append(_picture(codes_THW, fps, seconds))
        codes = codes_THW.reshape(-1)
    segments += [TextSegment(start, end, "user"), TextSegment(end, end, "assistant")]
    text_ids = np.array(system_ids + question_ids, np.uint32)
    return assemble(segments, text_ids, codes, "chat", vocabulary).ids[:-1]


def _picture(codes_THW: NDArray[np.uint32], fps: float | None, seconds: float | None) -> VisionSegment:
    t, h, w = codes_THW.shape
    return VisionSegment(t, h, w, 0, fps, seconds)
