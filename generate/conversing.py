"""A conversation with pictures and clips in it, as the ids a model is asked to continue.

The chat template of training does it (tokenize/templates.py), so a turn of a benchmark looks like one that was learned;
four pictures of 512 x 512 are 16,640 ids of codes and row ends, so a context of 9,216 takes two.

Shapes: t h w codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.generate.seeing import Seen, codes_of
from tokenmill.tokenize.documents import Segment, TextSegment, VisionSegment, assemble
from tokenmill.tokenize.vision import Codes, VisionTokenizer
from tokenmill.tokenize.vocabulary import Vocabulary

Speaker: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one side says and shows, in order."""

    speaker: Speaker
    parts: tuple[str | Seen, ...]


def conversation_prompts(
    conversations: Sequence[Sequence[Turn]], vocabulary: Vocabulary, vision: VisionTokenizer
) -> list[NDArray[np.int32] | SampleError]:
    """Give the ids of each conversation up to `ASSISTANT:`, or why there are none; all pictures are encoded together.

    A conversation ends with the user; what the system says stands before the first turn, else the template's sentence.
    """
    shown = [part for turns in conversations for turn in turns for part in turn.parts if isinstance(part, Seen)]
    codes = iter(codes_of(shown, vision))
    prompts: list[NDArray[np.int32] | SampleError] = []
    for turns in conversations:
        count = sum(isinstance(part, Seen) for turn in turns for part in turn.parts)
        mine = [next(codes) for _ in range(count)]
        try:
            prompts.append(conversation_prompt(turns, mine, vocabulary))
        except SampleError as error:
            prompts.append(error)
    return prompts


def conversation_prompt(turns: Sequence[Turn], codes: Sequence[Codes], vocabulary: Vocabulary) -> NDArray[np.int32]:
    """Give the ids of one conversation; `codes` (t, h, w) are those of what it shows, in order.

    Raises:
        SampleError: `no_question` where the user says and shows nothing at the end, or the system shows something.
    """
    segments: list[Segment] = []
    text_ids: list[int] = []
    offset, pictures = 0, iter(codes)
    for turn in turns:
        for part in turn.parts:
            if isinstance(part, Seen):
                codes_thw = next(pictures)
                segments.append(_shown(part, codes_thw, offset, turn.speaker))
                offset += codes_thw.size
            elif part:
                ids = vocabulary.text.encode(part)
                segments.append(TextSegment(len(text_ids), len(text_ids) + len(ids), turn.speaker))
                text_ids += ids
    if not segments or segments[-1].role != "user":
        raise SampleError("no_question", "a conversation must end with what the user says or shows")
    segments.append(TextSegment(len(text_ids), len(text_ids), "assistant"))
    flat = np.concatenate([np.zeros(0, np.uint32), *(one.reshape(-1) for one in codes)])
    return assemble(segments, np.array(text_ids, np.uint32), flat, "chat", vocabulary).ids[:-1]


def _shown(seen: Seen, codes_thw: Codes, offset: int, speaker: Speaker) -> VisionSegment:
    if speaker == "system":
        raise SampleError("no_question", "the system speaks, it shows no picture: put it into the user's turn")
    t, h, w = codes_thw.shape
    return VisionSegment(t, h, w, offset, seen.fps, seen.seconds, role=speaker)
