"""The ids a model is asked to continue: the training templates, cut where the answer begins.

Built from the same templates as training (tokenize/templates.py), so a prompt cannot drift from what was learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tokenmill.tokenize.documents import Segment, TextSegment, VisionSegment, assemble
from tokenmill.tokenize.segments import Speaker
from tokenmill.tokenize.templates import vision_opening
from tokenmill.tokenize.vision import Codes
from tokenmill.tokenize.vocabulary import Vocabulary

NO_CODES = np.zeros(0, np.uint32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """Codes (t, h, w) of a picture, or of a clip with `fps` and `seconds`; `name` is for people."""

    codes: Codes
    fps: float | None = None
    seconds: float | None = None
    name: str = ""


Said: TypeAlias = tuple[Speaker | Literal["system"], Sequence[int] | Shown]  # the system shows nothing


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
    said: list[Said] = [("system", vocabulary.text.encode(system))] if system else []
    if codes_THW is not None:
        said.append(("user", Shown(codes=codes_THW, fps=fps, seconds=seconds)))
    return talk_prompt(vocabulary, [*said, ("user", vocabulary.text.encode(question))])


def talk_prompt(vocabulary: Vocabulary, said: Iterable[Said]) -> NDArray[np.int32]:
    """Give the chat template up to `ASSISTANT:`: what each side says, as ids of text, and what it shows, in order."""
    segments: list[Segment] = []
    text_ids: list[int] = []
    codes: list[Codes] = [NO_CODES]
    num_codes = 0
    for speaker, one in said:
        if isinstance(one, Shown):
            assert speaker != "system"
            t, h, w = one.codes.shape
            segments.append(VisionSegment(t, h, w, num_codes, one.fps, one.seconds, role=speaker))
            codes.append(one.codes.reshape(-1))
            num_codes += one.codes.size
        else:
            segments.append(TextSegment(len(text_ids), len(text_ids) + len(one), speaker))
            text_ids += one
    segments.append(TextSegment(len(text_ids), len(text_ids), "assistant"))
    flat = np.concatenate(codes)
    return assemble(segments, np.array(text_ids, np.uint32), flat, "chat", vocabulary).ids[:-1]


def _picture(codes_THW: NDArray[np.uint32], fps: float | None, seconds: float | None) -> VisionSegment:
    t, h, w = codes_THW.shape
    return VisionSegment(t, h, w, 0, fps, seconds)
