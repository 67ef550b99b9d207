"""A chat with a model: turns of text, pictures and clips, kept as the training's chat template has them.

Nothing is encoded twice: answers stay the ids that the model gave, pictures it drew stay their codes. What a turn shows
is never forgotten silently; a conversation that is over the context is refused (a picture of 64x64 codes takes 4,163
ids of Emu3's 131,072), and `reset` begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.generate.known_words import check_words
from tokenmill.generate.opened_model import OpenedModel
from tokenmill.generate.prompts import NO_CODES, seeing_prompt
from tokenmill.generate.sampling import Sampling
from tokenmill.generate.streaming import TextStream
from tokenmill.generate.text import generate_text
from tokenmill.generate.threads import steady_threads
from tokenmill.tokenize.documents import Segment, TextSegment, VisionSegment, assemble
from tokenmill.tokenize.segments import Speaker
from tokenmill.tokenize.vision import Codes
from tokenmill.tokenize.vocabulary import Vocabulary

_LEAST_ROOM = 8  # ids for an answer; less is none
ANSWERING = Sampling(top_k=0, temperature=0.0, guidance=1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """Codes (t, h, w) of a picture, or of a clip with `fps` and `seconds`; `name` is for people."""

    codes: Codes
    fps: float | None = None
    seconds: float | None = None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Turn:
    """What one side showed and said; `ids` are those of `text`."""

    speaker: Speaker
    text: str
    ids: Sequence[int]
    shown: tuple[Shown, ...] = ()


def chat_prompt(vocabulary: Vocabulary, turns: Sequence[Turn], *, system: str = "") -> NDArray[np.int32]:
    """Give the ids of a conversation up to ` ASSISTANT:`, pictures before the words of their turn."""
    text_ids = list(vocabulary.text.encode(system))
    segments: list[Segment] = [TextSegment(0, len(text_ids), "system")] if system else []
    codes: list[NDArray[np.uint32]] = [NO_CODES]
    offset = 0
    for turn in turns:
        for one in turn.shown:
            t, h, w = one.codes.shape
            segments.append(VisionSegment(t, h, w, offset, one.fps, one.seconds, role=turn.speaker))
            codes.append(one.codes.reshape(-1))
            offset += one.codes.size
        if turn.ids or not turn.shown:
            segments.append(TextSegment(len(text_ids), len(text_ids) + len(turn.ids), turn.speaker))
            text_ids += turn.ids
    segments.append(TextSegment(len(text_ids), len(text_ids), "assistant"))
    document = assemble(segments, np.array(text_ids, np.uint32), np.concatenate(codes), "chat", vocabulary)
    return document.ids[:-1]


@dataclass(kw_only=True)
class Conversation:
    """A chat that is going on.

    Attributes:
        system: what the chat opens with; empty: the template's own sentence.
        max_new: ids of an answer, at most.
        sampling: greedy unless it says otherwise; each answer draws by `seed` + its number.
    """

    model: OpenedModel
    system: str = ""
    max_new: int = 256
    sampling: Sampling = ANSWERING
    seed: int = 0
    turns: list[Turn] = field(default_factory=list)
    waiting: list[Shown] = field(default_factory=list)

    def show(self, shown: Shown) -> None:
        """Show a picture or clip with the next thing that is said."""
        self.waiting.append(shown)

    def say(self, text: str, on_text: Callable[[str], None] | None = None) -> str:
        """Say something and return the answer, of which `on_text` gets parts as they come.

        Raises:
            RecipeError: nothing is said or shown, the vocabulary lacks the script, or the context is full; the
                conversation stays as it was.
        """
        text = text.strip()
        if not text and not self.waiting:
            raise RecipeError("nothing is said; ask something, or show a picture")
        vocabulary = self.model.model.vocabulary
        check_words(vocabulary, text, "the question")
        asked = self._turn("user", text, self.waiting)
        prompt = chat_prompt(vocabulary, [*self.turns, asked], system=self.system)
        answer, ids = self._continued(prompt, on_text)
        self.turns += [asked, Turn(speaker="assistant", text=answer, ids=ids)]
        self.waiting = []
        return answer

    def caption(self, shown: Shown) -> str:
        """Say what is seen, as the understanding template has it; the conversation stays as it is."""
        prompt = seeing_prompt(self.model.model.vocabulary, shown.codes, shown.fps, shown.seconds)
        return self._continued(prompt, None)[0]

    def drew(self, prompt: str, shown: Shown) -> None:
        """Keep that a picture was asked for and drawn, so that it can be talked about."""
        self.turns += [self._turn("user", prompt, self.waiting), self._turn("assistant", "", [shown])]
        self.waiting = []

    def reset(self) -> None:
        """Forget everything."""
        self.turns, self.waiting = [], []

    def transcript(self) -> list[dict[str, Any]]:
        """Return what was said and shown, as JSON values; pictures by name and grid."""
        return [
            {
                "speaker": turn.speaker,
                "text": turn.text,
                **(
                    {"shown": [{"name": one.name, "grid": list(one.codes.shape)} for one in turn.shown]}
                    if turn.shown
                    else {}
                ),
            }
            for turn in self.turns
        ]

    def _continued(self, prompt: NDArray[np.int32], on_text: Callable[[str], None] | None) -> tuple[str, list[int]]:
        """Return an answer and its ids."""
        vocabulary = self.model.model.vocabulary
        stream = TextStream(vocabulary.text, on_text)
        with steady_threads(self.model.model.model):
            (ids,) = generate_text(
                self.model.model.model,
                vocabulary,
                [prompt],
                max_new=self._room(len(prompt)),
                min_new=1,  # behind a picture without a caption (unconditional) an EOS follows: that is learned too
                top_k=self.sampling.top_k,
                top_p=self.sampling.top_p,
                temperature=self.sampling.temperature,
                seed=self.seed + len(self.turns) // 2,
                on_ids=lambda ids_B: stream.add(int(ids_B[0])) if ids_B[0] != vocabulary.eos else None,
            )
        answer = vocabulary.text.decode(ids.tolist())
        stream.end(answer)
        return answer, ids.tolist()

    def _turn(self, speaker: Speaker, text: str, shown: Sequence[Shown]) -> Turn:
        ids = self.model.model.vocabulary.encode(text).tolist()
        return Turn(speaker=speaker, text=text, ids=ids, shown=tuple(shown))

    def _room(self, prompt_ids: int) -> int:
        """Return how long an answer may be."""
        room = min(self.max_new, self.model.context - prompt_ids)
        if room < min(self.max_new, _LEAST_ROOM):
            told = f"the conversation is {prompt_ids:,} ids long, the model's context holds {self.model.context:,}"
            raise RecipeError(f"{told}: no room for an answer; begin anew (/reset)")
        return room
