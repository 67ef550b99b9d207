"""A preference pair that is tokens already, as a sample of a token archive: for a source of kind `tokens`.

What is stored are the ids and codes that were judged; only a prompt may be given in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.tokenize.preference import check_pair
from tokenmill.tokenize.segments import ANSWERS, Answer, Role, Segment, TextSegment, VisionSegment
from tokenmill.tokenize.vocabulary import Vocabulary

Ids = NDArray[np.uint32]
_NO_IDS = np.zeros(0, np.uint32)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerTokens:
    """One answer: codes (t, h, w) of a picture, or of a clip with `fps` and `seconds`; or ids of a text."""

    codes_thw: Ids | None = None
    text_ids: Ids | None = None
    fps: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPair:
    """A prompt's ids and two answers; `about` is what else is told of them, for the sample's JSON."""

    key: str
    prompt: Ids
    chosen: AnswerTokens
    rejected: AnswerTokens
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSample:
    """A pair as an archive holds it: all ids, all codes, and the segments that point into them."""

    segments: Sequence[Segment]
    text_ids: Ids
    codes: Ids


def pair_sample(pair: TokenPair) -> PairSample:
    """Lay a pair's arrays out; raises SampleError for answers that teach nothing (`check_pair`)."""
    texts, codes = [pair.prompt], [_NO_IDS]
    is_chat = pair.chosen.text_ids is not None or pair.rejected.text_ids is not None
    role: Role = "user" if is_chat else "caption"
    segments: list[Segment] = [TextSegment(0, len(pair.prompt), role, learn=False)] if len(pair.prompt) else []
    for answer, tokens in zip(ANSWERS, (pair.chosen, pair.rejected), strict=True):
        if tokens.codes_thw is not None:
            segments.append(_vision(tokens, tokens.codes_thw, sum(map(len, codes)), answer, is_chat))
            codes.append(tokens.codes_thw.reshape(-1))
        elif tokens.text_ids is not None:
            start = sum(map(len, texts))
            said: Any = "assistant" if len(pair.prompt) else "body"
            segments.append(TextSegment(start, start + len(tokens.text_ids), said, answer=answer))
            texts.append(tokens.text_ids)
    sample = PairSample(segments=segments, text_ids=np.concatenate(texts), codes=np.concatenate(codes))
    check_pair(sample.segments, sample.text_ids, sample.codes)
    return sample


def _vision(tokens: AnswerTokens, codes_thw: Ids, offset: int, answer: Answer, is_chat: bool) -> VisionSegment:
    t, h, w = codes_thw.shape
    role: Any = "assistant" if is_chat else None
    return VisionSegment(t, h, w, offset, fps=tokens.fps, seconds=tokens.seconds, role=role, answer=answer)


def pair_of_row(key: str, row: Mapping[str, Any], vocabulary: Vocabulary) -> TokenPair:
    """Read a row of a table: `prompt`, a text or {ids}; both answers, {codes, grid[, fps, seconds]} or {ids}.

    Raises SampleError `bad_pair` for what is none, `out_of_range` for ids or codes that the vocabulary does not have.
    """
    prompt = row.get("prompt")
    ids = vocabulary.encode(prompt) if isinstance(prompt, str) else _NO_IDS
    if isinstance(prompt, Mapping):
        ids = _numbers(prompt.get("ids"), "prompt.ids", vocabulary.text.size)
    answers = {name: _answer(row.get(name), name, vocabulary) for name in ANSWERS}
    about = {name: value for name, value in row.items() if name not in (*ANSWERS, "prompt", "key", "segments")}
    about |= {"prompt": prompt} if isinstance(prompt, str) else {}
    return TokenPair(key=key, prompt=ids, chosen=answers["chosen"], rejected=answers["rejected"], about=about)


def _answer(value: Any, name: Answer, vocabulary: Vocabulary) -> AnswerTokens:
    if not isinstance(value, Mapping) or (value.get("codes") is None) == (value.get("ids") is None):
        raise SampleError("bad_pair", f"{name} is neither {{codes, grid}} nor {{ids}}")
    if value.get("ids") is not None:
        return AnswerTokens(text_ids=_numbers(value["ids"], f"{name}.ids", vocabulary.text.size))
    codes = _numbers(value["codes"], f"{name}.codes", vocabulary.codebook_size)
    shape = _shape(value.get("grid"), len(codes), name)
    fps, seconds = value.get("fps"), value.get("seconds")
    if (fps is None) != (seconds is None) or (shape[0] > 1 and fps is None):
        raise SampleError("bad_pair", f"{name}: a clip needs fps and seconds")
    return AnswerTokens(codes_thw=codes.reshape(shape), fps=fps, seconds=seconds)


def _shape(grid: Any, num_codes: int, name: Answer) -> tuple[int, int, int]:
    is_grid = isinstance(grid, Sequence) and len(grid) in (2, 3)
    if not is_grid or not all(type(side) is int and side > 0 for side in grid) or math.prod(grid) != num_codes:
        raise SampleError("bad_pair", f"{name}: {num_codes} codes are no grid of {grid!r}")
    t, h, w = (1, *grid) if len(grid) == 2 else grid
    return t, h, w


def _numbers(value: Any, where: str, limit: int) -> Ids:
    try:
        found = np.asarray(value)
    except ValueError as error:
        raise SampleError("bad_pair", f"{where} is no list of whole numbers") from error
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "ui":
        raise SampleError("bad_pair", f"{where} is no list of whole numbers")
    if int(found.min()) < 0 or int(found.max()) >= limit:
        raise SampleError("out_of_range", f"{where}: from {found.min()} to {found.max()}, of a vocabulary of {limit}")
    return found.astype(np.uint32)
