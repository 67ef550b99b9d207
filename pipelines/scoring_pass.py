"""The scorers of one modality in one pass: their order, what their gates hang on, the identity of their columns.

Identity is per column: a folder's name covers the fingerprints of the scorer and of those its gate reads, so a scorer
added later runs alone and a changed one costs itself. Of clips it also covers which frames are sampled, and which of
those each scorer of pictures sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from tokenmill.errors import RecipeError
from tokenmill.filters.clip import Sampling
from tokenmill.filters.clip_frames import FrameChoice, Frames, Reduce, on_clips
from tokenmill.filters.on_documents import on_documents
from tokenmill.filters.rules import Gate, columns_of
from tokenmill.filters.scorer import (
    Scorer,
    build_scorer,
    identity_settings,
    is_prepared,
    reads_caption,
    reads_caption_alone,
)
from tokenmill.manifests.stagedir import StageConfig
from tokenmill.pipelines.decoding import DecodeLimits
from tokenmill.pipelines.samples import FAILURE_COLUMNS

VERSION = 1
CLIPS_VERSION = 1  # of how frames are sampled, shrunk and put together; part of the identity of clips' columns alone
DOCUMENTS_VERSION = 1  # of how what a document's texts and pictures say is put together
SCHEMA = 1
Reads = Literal["pictures", "captions", "both"]  # a text counts as a picture
RESERVED = frozenset(("key", *FAILURE_COLUMNS))


@dataclass(frozen=True, kw_only=True)
class ScorerSpec:
    """A scorer as the recipe names it; `when` is the gate, empty for none.

    `frames` and `reduce` are for scorers of pictures on clips: which of a clip's frames they see, and what their
    numbers become; None where the recipe says nothing. Of a document all pictures are seen, so `reduce` is enough.
    """

    name: str
    settings: Mapping[str, Any]
    when: str = ""
    frames: Frames | None = None
    reduce: Reduce | None = None

    @property
    def choice(self) -> FrameChoice:
        return FrameChoice(frames=self.frames or 1, reduce=self.reduce or "mean")


@dataclass(frozen=True, kw_only=True)
class ScoringPass:
    """The scorers of one source, in an order in which every gate finds its columns; `sampling` is there for clips."""

    modality: str
    specs: tuple[ScorerSpec, ...]
    scorers: Mapping[str, Scorer]
    needs: Mapping[str, tuple[str, ...]]  # scorer → all the scorers its gate hangs on
    sampling: Sampling | None = None

    @cached_property
    def called(self) -> Mapping[str, Scorer]:
        """The scorers as they are called on samples: those of clips on footage, those of documents on pages."""
        if self.modality == "document":
            return on_documents(self.scorers, {spec.name: spec.choice.reduce for spec in self.specs})
        if self.sampling is None:
            return self.scorers
        return on_clips(self.scorers, {spec.name: spec.choice for spec in self.specs})

    @cached_property
    def late(self) -> frozenset[str]:
        """The scorers whose gate hangs on a scorer with a model: they come after it, in the second half."""
        models = {name for name, scorer in self.scorers.items() if is_prepared(scorer)}
        return frozenset(name for name, needed in self.needs.items() if models.intersection(needed))

    def specs_that_read(self, what: Reads) -> list[ScorerSpec]:
        """Return the scorers whose values hang on these things, by themselves or by their gate, and on no others."""
        return [spec for spec in self.specs if self._reads(spec) == what]

    def _reads(self, spec: ScorerSpec) -> Reads:
        used = [self.scorers[name] for name in (spec.name, *self.needs[spec.name])]
        if not any(map(reads_caption, used)):
            return "pictures"
        return "captions" if all(map(reads_caption_alone, used)) else "both"

    def check_halves(self) -> None:
        """Raise RecipeError where whole pictures would have to travel to the models."""
        for name in sorted(self.late):
            if not is_prepared(self.scorers[name]):
                raise RecipeError(
                    f"filter.{self.modality}.scorers.{name}.when: hangs on a model's score, but this scorer needs the "
                    "whole picture, which does not travel; drop execution.pools.score.decode or change the gate"
                )

    @property
    def columns(self) -> dict[str, Any]:
        return {column: kind for spec in self.specs for column, kind in self.scorers[spec.name].columns.items()}

    def config(self, spec: ScorerSpec, limits: DecodeLimits) -> StageConfig:
        """Return the identity of one scorer's columns."""
        used = (spec.name, *self.needs[spec.name])
        return StageConfig(
            stage="score",
            version=VERSION,
            schema=SCHEMA,
            settings={
                "scorer": spec.name,
                "settings": identity_settings(self.scorers[spec.name], spec.settings),
                "when": {one.name: one.when for one in self.specs if one.name in used and one.when},
                **(limits.settings if self.modality != "text" else {}),
                **self._clip_settings(used),
                **self._document_settings(used),
            },
            fingerprints={name: self.scorers[name].fingerprint for name in used},
        )

    def _clip_settings(self, used: Sequence[str]) -> dict[str, Any]:
        """Return what decides which frames of clips are looked at; nothing for those that read captions alone."""
        looking = [name for name in used if not reads_caption_alone(self.scorers[name])]
        if self.sampling is None or not looking:
            return {}
        chosen = {spec.name: spec.choice.identity for spec in self.specs if spec.name in looking}
        frames = {name: choice for name, choice in chosen.items() if choice}
        return {"clips": {"version": CLIPS_VERSION, **asdict(self.sampling)}, "frames": frames}

    def _document_settings(self, used: Sequence[str]) -> dict[str, Any]:
        """Return what decides how the pictures of documents become one value."""
        if self.modality != "document":
            return {}
        looking = [spec for spec in self.specs if spec.name in used and self.scorers[spec.name].takes == "image"]
        return {"documents": DOCUMENTS_VERSION, "reduce": {spec.name: spec.choice.reduce for spec in looking}}


def scoring_pass(modality: str, specs: Sequence[ScorerSpec], sampling: Sampling | None = None) -> ScoringPass:
    """Build the scorers of a recipe's section and order them; raises RecipeError where gates go in circles.

    `sampling` is how frames of clips are taken; for other modalities it is ignored.
    """
    scorers = {spec.name: build_scorer(spec.name, spec.settings) for spec in specs}
    _check_columns(modality, scorers)
    for spec in specs:
        _check_frames(modality, spec, scorers[spec.name])
    owner = {column: name for name, scorer in scorers.items() for column in scorer.columns}
    columns = {column: kind for scorer in scorers.values() for column, kind in scorer.columns.items()}
    needs: dict[str, tuple[str, ...]] = {}
    for spec in specs:
        where = f"filter.{modality}.scorers.{spec.name}.when"
        if spec.when:
            Gate.parse(spec.when, columns, where)
        names = {owner[column] for column in (columns_of(spec.when, where) if spec.when else ())}
        needs[spec.name] = tuple(sorted(names))
    ordered = _ordered(specs, needs)
    for spec in ordered:  # a gate's scorers may be gated themselves: those before them are needed too
        direct = needs[spec.name]
        needs[spec.name] = tuple(sorted({*direct, *(name for one in direct for name in needs[one])}))
    sampling = (sampling or Sampling()) if modality == "video" else None
    return ScoringPass(modality=modality, specs=ordered, scorers=scorers, needs=needs, sampling=sampling)


def _check_frames(modality: str, spec: ScorerSpec, scorer: Scorer) -> None:
    """Raise RecipeError where a scorer is told which frames to see and there is no choice."""
    where = f"filter.{modality}.scorers.{spec.name}"
    for key, value in (("frames", spec.frames), ("reduce", spec.reduce)):
        if value is None:
            continue
        if modality == "document" and key == "reduce" and scorer.takes == "image":
            return
        if modality == "document":
            raise RecipeError(f"{where}.{key}: all pictures of a document are seen; only reduce, for pictures")
        if modality != "video":
            raise RecipeError(f"{where}.{key}: a sample of {modality} has no frames; only under filter.video")
        if scorer.takes == "video":
            raise RecipeError(f"{where}.{key}: this scorer takes whole clips; leave it out")
        if reads_caption_alone(scorer):
            raise RecipeError(f"{where}.{key}: this scorer reads captions and no frame; leave it out")
    if spec.reduce is not None and spec.choice.frames == 1:
        raise RecipeError(f"{where}.reduce: is about several frames; give frames, a number above 1 or all")


def _check_columns(modality: str, scorers: Mapping[str, Scorer]) -> None:
    """Raise RecipeError where a column would be two things."""
    owner: dict[str, str] = {}
    for name, scorer in scorers.items():
        for column in scorer.columns:
            if column in RESERVED:
                raise RecipeError(f"filter.{modality}.scorers.{name}: the column {column!r} is tokenmill's own")
            if column in owner:
                raise RecipeError(f"filter.{modality}.scorers: {owner[column]} and {name} both offer {column!r}")
            owner[column] = name


def _ordered(specs: Sequence[ScorerSpec], needs: Mapping[str, tuple[str, ...]]) -> tuple[ScorerSpec, ...]:
    ordered: list[ScorerSpec] = []
    while len(ordered) < len(specs):
        ready = {spec.name for spec in ordered}
        free = [spec for spec in specs if spec not in ordered and ready.issuperset(needs[spec.name])]
        if not free:
            raise RecipeError("filter: the `when` gates of the scorers wait for each other")
        ordered += free
    return tuple(ordered)
