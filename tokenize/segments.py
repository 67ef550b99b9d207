"""What a document is on disk: a sequence of text and vision segments (DESIGN §3), without any marker.

Ids and codes lie in two flat arrays of the sample; a segment says where. So an interleaved page, a chat and five
captions of one picture are all the same kind of thing, and a length can be told without reading a single id.

A long clip's caption may have been told in stretches. Then it stands twice, whole under role `caption` and in parts
under role `stretch`, which no template shows: a run of the clip's frames takes the part that is about it (frames.py).

A preference pair is one sample: a prompt, and two answers to it whose segments say which they are (preference.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from tokenmill.errors import ManifestError

Role: TypeAlias = Literal["caption", "body", "system", "user", "assistant", "stretch"]
Speaker: TypeAlias = Literal["user", "assistant"]
Answer: TypeAlias = Literal["chosen", "rejected"]
ROLES: tuple[str, ...] = get_args(Role)
SPEAKERS: tuple[str, ...] = get_args(Speaker)
ANSWERS: tuple[Answer, ...] = get_args(Answer)


@dataclass(frozen=True, slots=True)
class TextSegment:
    """Text ids [start, end) of the sample; `variant` numbers alternative captions, of which a plan picks one.

    `seconds` are the beginning and the end of the stretch of a clip that the text is about, since the clip's beginning.
    `answer` says of which answer of a preference pair it is; None of the prompt, and of everything that is no pair.
    """

    start: int
    end: int
    role: Role
    learn: bool = True
    variant: int = 0
    seconds: tuple[float, float] | None = None
    answer: Answer | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ManifestError(f"text segment [{self.start}, {self.end}) is not a range")
        if self.role not in ROLES:
            raise ManifestError(f"text segment has role {self.role!r}; known are {', '.join(ROLES)}")
        if self.variant < 0:
            raise ManifestError(f"text segment has variant {self.variant}; variants count from 0")
        if (self.role == "stretch") != (self.seconds is not None):
            raise ManifestError("a text segment has seconds if its role is stretch, and not otherwise")
        _check_answer(self.answer)


@dataclass(frozen=True, slots=True)
class VisionSegment:
    """Codes [offset, offset + t·h·w) of the sample: one image, or a clip (then `fps` and `seconds` are set).

    `role` says in whose turn of a conversation it is shown; None where nobody said. `answer` is as that of a text.
    """

    t: int
    h: int
    w: int
    offset: int
    fps: float | None = None
    seconds: float | None = None
    learn: bool = True
    role: Speaker | None = None
    answer: Answer | None = None

    def __post_init__(self) -> None:
        _check_answer(self.answer)
        if self.role is not None and self.role not in SPEAKERS:
            raise ManifestError(f"vision segment has role {self.role!r}; known are {', '.join(SPEAKERS)}")
        if min(self.t, self.h, self.w) < 1 or self.offset < 0:
            raise ManifestError(f"vision segment {self.t}×{self.h}×{self.w} at {self.offset} is not a grid of codes")
        if (self.fps is None) != (self.seconds is None):
            raise ManifestError("a clip's vision segment needs both fps and seconds")
        if self.t > 1 and self.fps is None:
            raise ManifestError(f"a vision segment of {self.t} latent frames is a clip: it needs fps and seconds")

    @property
    def num_codes(self) -> int:
        return self.t * self.h * self.w

    @property
    def num_grid_ids(self) -> int:
        """Ids from the first code to the last EOF: every row ends in EOL, every latent frame in EOF."""
        return self.t * (self.h * (self.w + 1) + 1)


Segment: TypeAlias = TextSegment | VisionSegment


def segment_to_json(segment: Segment) -> dict[str, Any]:
    """Give the mapping that archives and indexes hold."""
    if isinstance(segment, TextSegment):
        told: dict[str, Any] = {"text": [segment.start, segment.end], "role": segment.role}
        told |= {"learn": segment.learn, "variant": segment.variant}
        told |= {} if segment.answer is None else {"answer": segment.answer}
        return told if segment.seconds is None else told | {"seconds": list(segment.seconds)}
    fields: dict[str, Any] = {"vision": [segment.t, segment.h, segment.w], "offset": segment.offset}
    if segment.fps is not None:
        fields |= {"fps": segment.fps, "seconds": segment.seconds}
    fields |= {} if segment.role is None else {"role": segment.role}
    fields |= {} if segment.answer is None else {"answer": segment.answer}
    return fields if segment.learn else fields | {"learn": False}


def segment_from_json(fields: Mapping[str, Any]) -> Segment:
    """Read one segment back; raises ManifestError for anything that is none."""
    try:
        if "text" in fields:
            start, end = fields["text"]
            first, last = fields.get("seconds", (None, None))
            seconds = None if first is None or last is None else (float(first), float(last))
            learn, variant = fields.get("learn", True), fields.get("variant", 0)
            return TextSegment(start, end, fields["role"], learn, variant, seconds, fields.get("answer"))
        t, h, w = fields["vision"]
        clip = (fields.get("fps"), fields.get("seconds"))
        learn, role, answer = fields.get("learn", True), fields.get("role"), fields.get("answer")
        return VisionSegment(t, h, w, fields["offset"], *clip, learn, role, answer)
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(f"not a segment: {str(fields)[:200]}") from error


def segments_to_json(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    return [segment_to_json(segment) for segment in segments]


def segments_from_json(fields: Sequence[Mapping[str, Any]]) -> list[Segment]:
    """Read a sample's segments back; raises ManifestError for anything that is none."""
    if not isinstance(fields, list):
        raise ManifestError(f"not a list of segments: {str(fields)[:200]}")
    return [segment_from_json(item) for item in fields]


def _check_answer(answer: Any) -> None:
    if answer is not None and answer not in ANSWERS:
        raise ManifestError(f"a segment has answer {answer!r}; known are {', '.join(ANSWERS)}")
