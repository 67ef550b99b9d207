"""Documents of a plan's held-out part, and of its training part, drawn by the plan's own rules.

Which samples are held out is a hash of their name, so nothing was written down and nothing has to be: the indexes that
the plan names are enough. Documents come with the templates, wordings and stretches of clips that the plan would draw;
a text longer than the context is taken up to the context, and of a preference pair the chosen answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenmill.generate.evaluate import Sample
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.named_tables import open_named_table
from tokenmill.manifests.plans import Plan
from tokenmill.pipelines.plan_documents import draw_pass
from tokenmill.pipelines.plan_draws import uniform
from tokenmill.pipelines.plan_exclusion import exclusion_in
from tokenmill.pipelines.plan_spans import Document
from tokenmill.pipelines.plan_windows import ShardPass
from tokenmill.pipelines.stored import read_stored
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.documents import assemble
from tokenmill.tokenize.frames import take_frames
from tokenmill.tokenize.vocabulary import Vocabulary

_SHARDS_A_SOURCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnDocument:
    """One document: its ids as the model would read them, and the sample (a clip's stretch) it was made of.

    `weight` is how often the plan goes through its source.
    """

    key: str
    modality: str
    template: str
    weight: float
    sample: Sample
    ids: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    archive: str
    row: Mapping[str, Any]
    document: Document
    weight: float
    place: float  # in a random order that depends on the sample alone


def draw_documents(
    plan: Plan, vocabulary: Vocabulary, part: Literal["training", "held_out"], limit: int
) -> list[DrawnDocument]:
    """Draw at most `limit` documents of a part, evenly over the modalities it has, in order of their keys."""
    candidates: dict[str, list[_Candidate]] = defaultdict(list)
    for source, shards in _shards(plan):
        for candidate in _candidates(plan, vocabulary, part, source, shards, limit):
            candidates[candidate.row["modality"]].append(candidate)
    chosen = []
    for modality, share in shares({name: len(found) for name, found in candidates.items()}, limit).items():
        chosen += sorted(candidates[modality], key=lambda candidate: candidate.place)[:share]
    return list(_read(plan, vocabulary, chosen))


def shares(available: Mapping[str, int], limit: int) -> dict[str, int]:
    """Split `limit` evenly; what one cannot use goes to the others."""
    split: dict[str, int] = {}
    for left, (name, number) in zip(
        range(len(available), 0, -1), sorted(available.items(), key=lambda item: (item[1], item[0])), strict=True
    ):
        split[name] = min(number, (limit - sum(split.values())) // left)
    return split


def _candidates(
    plan: Plan,
    vocabulary: Vocabulary,
    part: Literal["training", "held_out"],
    source: str,
    shards: Sequence[Mapping[str, str]],
    limit: int,
) -> Iterator[_Candidate]:
    """Yield a source's documents, shard by shard until there are `limit`."""
    settings = PlanSettings(**plan.folder.config.settings["plan"])
    epochs = float(plan.description["sources"][source]["epochs"])
    settings = settings.model_copy(update={"part": part})
    share, exclusion = min(1.0, epochs) if part == "training" else 1.0, exclusion_in(plan.folder)
    found = 0
    for shard in shards if epochs else ():
        index = open_named_table(plan.folder.store, shard["index"])
        drawn, _, _ = draw_pass(index, _first_pass(shard, share), settings, vocabulary, exclusion)
        rows = index.frame()
        for document in map(drawn.document, range(len(drawn))):
            row = rows.row(document.sample, named=True)
            place = uniform("evaluation", source, row["key"], str(document.frame or document.start))
            yield _Candidate(archive=shard["shard"], row=row, document=document, weight=max(1.0, epochs), place=place)
        found += len(drawn)
        if found >= limit:
            return


def _first_pass(shard: Mapping[str, str], share: float) -> ShardPass:
    """Give the plan's first pass over a shard of its table, or a part of it."""
    return ShardPass(
        source=shard["source"],
        archive=shard["shard"],
        index=shard["index"],
        digest=digest_of([shard["shard_sha256"], shard["index_sha256"]]),
        repetition=0,
        share=share,
        num_samples=0,
    )


def _shards(plan: Plan) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield each source with the rows of its shards in a fixed random order, at most 64."""
    for (source,), group in plan.shards.sort("source", "shard").group_by("source", maintain_order=True):
        rows = sorted(group.rows(named=True), key=lambda row: uniform("evaluation", row["shard"]))
        yield str(source), rows[:_SHARDS_A_SOURCE]


def _read(plan: Plan, vocabulary: Vocabulary, chosen: Iterable[_Candidate]) -> Iterator[DrawnDocument]:
    by_archive: dict[str, list[_Candidate]] = defaultdict(list)
    for candidate in chosen:
        by_archive[candidate.archive].append(candidate)
    for archive, group in sorted(by_archive.items()):
        group.sort(
            key=lambda candidate: (candidate.document.sample, candidate.document.frame, candidate.document.start)
        )
        stored = read_stored(plan.folder.store, archive, [candidate.row for candidate in group])
        for candidate, sample in zip(group, stored, strict=True):
            yield _drawn(candidate, sample, plan, vocabulary)


def _drawn(candidate: _Candidate, sample: Sample, plan: Plan, vocabulary: Vocabulary) -> DrawnDocument:
    document = candidate.document
    if document.frames:
        sample = replace(sample, segments=take_frames(sample.segments, document.frame, document.frames))
    template = "chosen" if document.split else document.template  # of a pair what was preferred, alone
    found = assemble(sample.segments, sample.text_ids, sample.codes, template, vocabulary, document.variant)
    return DrawnDocument(
        key=candidate.row["key"],
        modality=candidate.row["modality"],
        template=template,
        weight=candidate.weight,
        sample=sample,
        ids=found.ids[document.start :][: min(document.length, plan.context)],
    )
