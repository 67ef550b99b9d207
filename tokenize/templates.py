"""In which order a sample's segments become a document, and what stands between them (EMU3.md §4).

A template is a pure function from segments to parts; lengths, ids and loss weights are all read off the same parts,
so they cannot disagree. Markers and words a template adds are encoded on their own, never joined with a sample's text:
a length then needs no ids, at the price that BPE does not merge across the seam (`?` + `. ASSISTANT:` of a chat turn
stay two ids where encoding the joined string gives the one id `?.`).

A sample may have captions and a conversation at once: templates of pictures and texts show captions and bodies, chat
shows turns, and each leaves out what is the other's.

A preference pair is shown by `chosen` and `preference` alone. The latter lays both documents behind one another, prompt
and chosen answer, prompt and rejected answer; a plan puts each in a slot of its own, as pieces of a text have.

Loss classes. Everything from SOV to EOV is *vision*: in a run with vision off nothing of it is learned, in one with
only vision EOL, EOF and EOV are (R's trainer forgot them). Segments carry `learn`; markers around a segment follow it,
EOS follows the segment that it ends, BOS and the words of the chat template are never learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import Literal, TypeAlias

from tokenmill.errors import RecipeError, SampleError
from tokenmill.tokenize.segments import ANSWERS, Answer, Role, Segment, Speaker, TextSegment, VisionSegment
from tokenmill.tokenize.vocabulary import Vocabulary

LossClass: TypeAlias = Literal["text", "vision", "none"]

DEFAULT_SYSTEM = "You are a helpful assistant."
USER_OPENS = " USER: "
USER_CLOSES = ". ASSISTANT:"
BETWEEN_TEXTS = "\n"
PREFERENCE = "preference"
PAIR_TEMPLATES = ("chosen", PREFERENCE)  # that show pairs, and nothing else


@dataclass(frozen=True, slots=True)
class Marker:
    """Ids that the template adds."""

    ids: tuple[int, ...]
    loss: LossClass


Part: TypeAlias = Marker | TextSegment | VisionSegment
Template: TypeAlias = Callable[[Sequence[Segment], Vocabulary], list[Part]]


def generation(segments: Sequence[Segment], vocabulary: Vocabulary) -> list[Part]:
    """`BOS caption SOV meta SOT vision EOV EOS`: text first, then every picture."""
    return _framed([*_texts(segments), *_visions(segments)], vocabulary)


def understanding(segments: Sequence[Segment], vocabulary: Vocabulary) -> list[Part]:
    """`BOS SOV meta SOT vision EOV caption EOS`: every picture, then the text."""
    return _framed([*_visions(segments), *_texts(segments)], vocabulary)


def language(segments: Sequence[Segment], vocabulary: Vocabulary) -> list[Part]:
    """`BOS text EOS`; pictures are left out."""
    return _framed(_texts(segments), vocabulary)


def unconditional(segments: Sequence[Segment], vocabulary: Vocabulary) -> list[Part]:
    """`BOS SOV meta SOT vision EOV EOS`: the caption dropped, for guidance."""
    return _framed(_visions(segments), vocabulary)


def interleaved(segments: Sequence[Segment], vocabulary: Vocabulary) -> list[Part]:
    """`BOS … EOS` with text and pictures in the order of the page; refused for what is a conversation alone."""
    if any(_is_turn(segment) for segment in segments) and not _texts(segments):
        raise SampleError("no_page", "the interleaved template needs a page, the sample is a conversation")
    return _framed([segment for segment in segments if not _is_turn(segment)], vocabulary)


def chat(segments: Sequence[Segment], vocabulary: Vocabulary) -> list[Part]:
    """`BOS` system ` USER: ` picture and text `. ASSISTANT:` answer `EOS`, and so on for more turns.

    A picture stands in the turn that its role says (`_speakers`), an answer may be one; every answer ends in an EOS of
    its own. Captions and bodies are left out. A system's words later on are part of the question that they precede.
    Raises SampleError when the conversation does not open with the user and end with the assistant.
    """
    shown = [segment for segment in segments if _is_turn(segment) or _is_vision(segment)]
    if not any(_is_turn(segment) for segment in shown):
        raise SampleError("no_answer", "the chat template needs turns of a conversation")
    opening = list(takewhile(lambda segment: _has_role(segment, "system"), shown))
    turns = shown[len(opening) :]
    speakers = _speakers(turns)
    if not turns or speakers[0] == "assistant" or speakers[-1] != "assistant":
        raise SampleError("no_answer", "a chat opens with the user and ends with the assistant")
    parts: list[Part] = [Marker((vocabulary.bos,), "none")]
    parts += _turn(opening, vocabulary) or [_words(DEFAULT_SYSTEM, vocabulary)]
    for speaker, run in groupby(zip(speakers, turns, strict=True), lambda pair: pair[0]):
        turn = [segment for _, segment in run]
        parts.append(_words(USER_CLOSES if speaker == "assistant" else USER_OPENS, vocabulary))
        parts += _turn(turn, vocabulary)
        if speaker == "assistant":
            parts.append(Marker((vocabulary.eos,), _loss(turn[-1])))
    return parts


def _turn(turn: Sequence[Segment], vocabulary: Vocabulary) -> list[Part]:
    """Give what one side says, texts that follow each other on lines of their own."""
    parts: list[Part] = []
    for before, segment in zip([None, *turn], turn, strict=False):
        if isinstance(before, TextSegment) and isinstance(segment, TextSegment):
            parts.append(Marker(vocabulary.encode_literal(BETWEEN_TEXTS), _loss(segment)))
        parts += _expand(segment, vocabulary)
    return parts


def _speakers(turns: Sequence[Segment]) -> list[Speaker]:
    """Say who shows or says each segment.

    A picture without a role is part of the question; where no answer follows its question, one that is learned is it.
    """
    speakers: list[Speaker] = []
    following: Role | None = None
    for number in range(len(turns) - 1, -1, -1):
        segment = turns[number]
        if isinstance(segment, TextSegment):
            following = segment.role
            speakers.append("assistant" if segment.role == "assistant" else "user")
        elif segment.role is not None:
            following = segment.role
            speakers.append(segment.role)
        else:
            said = next((one.role for one in reversed(turns[:number]) if one.role is not None), None)
            is_answer = segment.learn and said in ("user", "system") and following != "assistant"
            is_rest = segment.learn and said == "assistant" and following is None
            speakers.append("assistant" if is_answer or is_rest else "user")
    return speakers[::-1]


def chosen(segments: Sequence[Segment], vocabulary: Vocabulary) -> list[Part]:
    """Show a pair's prompt with the chosen answer, for fine-tuning on what was preferred."""
    return answered(segments, "chosen", vocabulary)


def preference(segments: Sequence[Segment], vocabulary: Vocabulary) -> list[Part]:
    """Show a pair's prompt with the chosen answer, and behind it once more with the rejected one: two documents."""
    return [part for answer in ANSWERS for part in answered(segments, answer, vocabulary)]


def answered(segments: Sequence[Segment], answer: Answer, vocabulary: Vocabulary) -> list[Part]:
    """Show a pair's prompt with one of its answers: as a chat where it has turns, else `BOS prompt answer EOS`.

    Of the prompt nothing is learned, whatever its segments say: both documents have it. Raises SampleError (`no_pair`)
    where an answer is missing, and as `chat` does.
    """
    missing = [name for name in ANSWERS if not any(segment.answer == name for segment in segments)]
    if missing:
        raise SampleError("no_pair", f"a preference pair needs two answers; {' and '.join(missing)} is missing")
    shown = [replace(one, learn=one.answer is not None) for one in segments if one.answer in (None, answer)]
    shown.sort(key=lambda segment: segment.answer is not None)
    return chat(shown, vocabulary) if any(map(_is_turn, shown)) else _framed(shown, vocabulary)


TEMPLATES: Mapping[str, Template] = {
    "generation": generation,
    "understanding": understanding,
    "language": language,
    "unconditional": unconditional,
    "interleaved": interleaved,
    "chat": chat,
    "chosen": chosen,
    PREFERENCE: preference,
}


def lay_out(segments: Sequence[Segment], template: str, vocabulary: Vocabulary, variant: int = 0) -> list[Part]:
    """Give the document's parts in order, with only caption number `variant`.

    Raises:
        RecipeError: no template of that name.
        SampleError: the sample lacks what the template needs (`no_text`, `no_vision`, `no_answer`, `no_pair`), or is a
            pair, which it would show with both answers as if they were one (`is_pair`).
    """
    if template not in TEMPLATES:
        raise RecipeError(f"no template {template!r}; there are {', '.join(TEMPLATES)}")
    wanted = [segment for segment in segments if not _is_other(segment, variant)]
    if template not in PAIR_TEMPLATES and is_pair(wanted):
        raise SampleError("is_pair", f"a preference pair is shown by {' or '.join(PAIR_TEMPLATES)}, not by {template}")
    if template in ("generation", "understanding", "language") and not _texts(wanted):
        raise SampleError("no_text", f"the {template} template needs text (caption variant {variant})")
    if template in ("generation", "understanding", "unconditional") and not _visions(wanted):
        raise SampleError("no_vision", f"the {template} template needs a picture or a clip")
    return TEMPLATES[template](wanted, vocabulary)


def is_pair(segments: Iterable[Segment]) -> bool:
    """Tell whether any segment is an answer of a preference pair."""
    return any(segment.answer is not None for segment in segments)


def vision_opening(segment: VisionSegment, vocabulary: Vocabulary) -> tuple[int, ...]:
    """Give `SOV meta SOT`: what stands before the first code, and what a generation prompt ends with."""
    return (vocabulary.sov, *vocabulary.encode_literal(vision_meta(segment)), vocabulary.sot)


def vision_meta(segment: VisionSegment) -> str:
    """Say the grid, height first, and a clip's rate and length: `64*64`, `64*64 24fps 5s` (EMU3.md §4)."""
    grid = f"{segment.h}*{segment.w}"
    return grid if segment.fps is None else f"{grid} {segment.fps:g}fps {segment.seconds:g}s"


def _framed(segments: Iterable[Segment], vocabulary: Vocabulary) -> list[Part]:
    segments = list(segments)
    parts: list[Part] = [Marker((vocabulary.bos,), "none")]
    for segment in segments:
        parts += _expand(segment, vocabulary)
    return [*parts, Marker((vocabulary.eos,), _loss(segments[-1]) if segments else "text")]


def _expand(segment: Segment, vocabulary: Vocabulary) -> list[Part]:
    if isinstance(segment, TextSegment):
        return [segment]
    loss = _loss(segment)
    return [Marker(vision_opening(segment, vocabulary), loss), segment, Marker((vocabulary.eov,), loss)]


def _loss(segment: Segment) -> LossClass:
    if not segment.learn:
        return "none"
    return "text" if isinstance(segment, TextSegment) else "vision"


def _words(text: str, vocabulary: Vocabulary) -> Marker:
    return Marker(vocabulary.encode_literal(text), "none")


def _has_role(segment: Segment, role: Role) -> bool:
    return isinstance(segment, TextSegment) and segment.role == role


def _is_other(segment: Segment, variant: int) -> bool:
    """Tell whether a segment is another caption than the wanted one, or a part of a caption that stands whole too."""
    if not isinstance(segment, TextSegment) or segment.answer is not None:
        return False
    return segment.role == "stretch" or (segment.role == "caption" and segment.variant != variant)


def _is_turn(segment: Segment) -> bool:
    return isinstance(segment, TextSegment) and segment.role in ("system", "user", "assistant")


def _is_vision(segment: Segment) -> bool:
    return isinstance(segment, VisionSegment)


def _texts(segments: Iterable[Segment]) -> list[Segment]:
    """Return what is said about pictures, or read: not the turns of a conversation."""
    return [segment for segment in segments if isinstance(segment, TextSegment) and not _is_turn(segment)]


def _visions(segments: Iterable[Segment]) -> list[Segment]:
    return [segment for segment in segments if _is_vision(segment)]
