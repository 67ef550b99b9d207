"""What a captioner is, and how a recipe names one.

An engine pulls requests and gives answers, as many at a time and in whatever order suits it: a server is asked 256
times at once, a model in this process gets batches. What was answered is kept by the caption stage, so an engine needs
no cache, no resume and no files of its own; prompts are rendered and answers judged outside of it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.plugins import build

# What is known of a sample: `key`, `source`, `caption`, `metadata` and `scores` (mappings), sizes; see questions.py.
Sample = Mapping[str, Any]
Takes = Literal["text", "encoded", "pixels"]

ENTRY_POINT_GROUP = "tokenmill.captioners"
BUILT_IN = {
    "metadata": "tokenmill.captions.metadata:MetadataCaptioner",
    "openai": "tokenmill.captions.openai:OpenAICaptioner",
    "template": "tokenmill.captions.template:TemplateCaptioner",
    "transformers": "tokenmill.captions.transformers:TransformersCaptioner",
    "vllm": "tokenmill.captions.vllm:VllmCaptioner",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPicture:
    """A picture as a file: `media_type` is image/jpeg, image/png or image/webp."""

    data: bytes
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question about one sample, or about a stretch of a clip.

    Attributes:
        index: comes back with the answer, which may come in any order.
        prompt, system: rendered; empty for engines that only read the sample.
        seed: derived from the sample's key, for engines that sample.
        pictures: what `takes = "encoded"` gets: one picture, or a clip's frames in order.
        frames: what `takes = "pixels"` gets: THWC uint8 RGB, T = 1 for a picture.
        seconds: when each frame of a clip is seen, from its beginning.
    """

    index: int
    sample: Sample
    prompt: str = ""
    system: str = ""
    seed: int = 0
    pictures: tuple[EncodedPicture, ...] = ()
    frames: NDArray[np.uint8] | None = None
    seconds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an answer cost: requests sent for it (tries included), tokens as the engine counts them, and why it was
    asked again (reason → times), such as `http_503` or `timeout`."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    retried: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request came to: texts (wordings of one caption, the best first), or the error it ended with.

    Attributes:
        model: as the engine names it, which may be more exact than what was asked for.
        finish_reason: `stop`, `length` (cut off), or what else the engine says.
        seconds: from the first try to the answer.
    """

    index: int
    texts: tuple[str, ...] = ()
    error: SampleError | None = None
    usage: Usage = field(default_factory=Usage)
    model: str = ""
    finish_reason: str = ""
    seconds: float = 0.0


class Captioner(Protocol):
    """Answers requests; built from a recipe's settings by a factory that takes them as keywords.

    Building it loads and connects nothing: a recipe is checked that way. Class attributes where a class will do.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int:
        """Counts changes of what the same settings answer."""

    @property
    def takes(self) -> Takes:
        """What it looks at beside the words: nothing, encoded pictures, or pixels."""

    @property
    def asks(self) -> bool:
        """Whether an answer costs something: kept for ever then, never asked again. Else it only reads the sample."""

    @property
    def max_side_px(self) -> int | None:
        """The longest side of pictures it is handed; larger ones are shrunk before. None: as they are."""

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over name, version, weights and what decides about answers, not where or how fast they come."""

    def answers(self, requests: Iterable[Request]) -> Iterator[Sequence[Answer]]:
        """Pull requests, no more than are worked on, and yield whatever is answered by now, each request once.

        A yielded answer counts as being worked on until the next one is asked for: the caller has stored it by then, so
        whoever is killed loses no more than what was in flight.

        Raises:
            RunError: nothing can be answered (wrong key, wrong model, no server); says what to do.
        """

    def close(self) -> None:
        """Let go of connections and models."""


def build_captioner(name: str, settings: Mapping[str, Any] | None = None) -> Captioner:
    """Build the captioner a recipe names; raises RecipeError for unknown names and settings."""
    captioner: Captioner = build("captioner", name, settings or {}, BUILT_IN, ENTRY_POINT_GROUP)
    return captioner
