"""Evaluation samples of which no copy may be trained on: read and scored like any source, kept apart from all of them.

They lie under names that no source can have (`ingest/evaluation.image.<name>`), so no later stage ever meets them. They
are scored without gates: a small picture is worth recognising, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.compare_read import PHASH
from tokenmill.pipelines.compare_settings import need, need_signatures, need_vectors
from tokenmill.pipelines.decoding import DecodeLimits
from tokenmill.pipelines.ingest import ingest_work
from tokenmill.pipelines.jobs import StageWork
from tokenmill.pipelines.recipe_sections import absolute
from tokenmill.pipelines.samples import slices
from tokenmill.pipelines.score import score_work
from tokenmill.pipelines.scored import Scored, scored_slices
from tokenmill.pipelines.scoring_pass import ScoringPass, scoring_pass
from tokenmill.pipelines.sources.source import open_source
from tokenmill.recipe import Decontaminate, Execution

log = logging.getLogger(__name__)
Run = Callable[[Mapping[str, StageWork]], Mapping[str, tuple[Snapshot, ...]]]


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """The samples of one set, with their scores; `snapshots` are all that was made of it."""

    asked: Decontaminate
    source: str
    scored: tuple[Scored, ...]
    snapshots: tuple[Snapshot, ...]

    @cached_property
    def digest(self) -> str:
        """The samples and their scores, as logical values."""
        return digest_of([[reference.to_json() for reference in part.references] for part in self.scored])


def criteria(asked: Decontaminate) -> dict[str, Any]:
    """Return what of a set's section decides about copies."""
    found: dict[str, Any] = {"name": asked.name, "exact": asked.exact}
    if asked.max_distance is not None:
        found["max_distance"] = asked.max_distance
    if asked.min_cosine is not None:
        found |= {"min_cosine": asked.min_cosine, "cosine_column": asked.cosine_column}
    if asked.min_jaccard is not None:
        found |= {"min_jaccard": asked.min_jaccard, "jaccard_column": asked.jaccard_column}
    if asked.ngram is not None:
        found["ngram"] = asked.ngram
    return found


def columns_of_sets(sets: Sequence[Decontaminate]) -> frozenset[str]:
    """Return the score columns that some sets are compared by."""
    found = {PHASH for one in sets if one.max_distance is not None}
    found |= {one.cosine_column for one in sets if one.min_cosine is not None}
    return frozenset(found | {one.jaccard_column for one in sets if one.min_jaccard is not None})


def scorers_of_sets(sets: Sequence[Decontaminate], scoring: ScoringPass) -> frozenset[str]:
    """Return the scorers that give these columns."""
    columns = columns_of_sets(sets)
    return frozenset(name for name, scorer in scoring.scorers.items() if columns.intersection(scorer.columns))


def check_sets(
    modality: str, sets: Sequence[Decontaminate], columns: Mapping[str, Any], sources: Collection[str]
) -> None:
    """Check a modality's section `decontaminate`; raises RecipeError naming the key path and what to do."""
    for number, asked in enumerate(sets):
        where = f"filter.{modality}.decontaminate[{number}]"
        if asked.name in sources:
            raise RecipeError(f"{where}.name: {asked.name!r} is a source of this recipe; give the set another name")
        if modality == "video":
            raise RecipeError(f"{where}: clips are not compared with evaluation samples yet; allowed: image, text")
        if not (asked.exact or columns_of_sets([asked]) or asked.ngram):
            raise RecipeError(
                f"{where}: says of no copy what it is; give max_distance, min_cosine, min_jaccard or ngram"
            )
        if modality == "document" and (asked.max_distance is not None or asked.min_cosine is not None):
            raise RecipeError(f"{where}: documents are compared by their bytes and texts; allowed: exact, min_jaccard")
        if asked.ngram is not None and modality != "text":
            raise RecipeError(f"{where}.ngram: is for texts")
        if asked.max_distance is not None:
            need(columns, PHASH, f"{where}.max_distance", "add the scorer perceptual_hash, or clip_hash")
        if asked.min_cosine is not None:
            need_vectors(columns, asked.cosine_column, f"{where}.min_cosine")
        if asked.min_jaccard is not None:
            need_signatures(columns, asked.jaccard_column, f"{where}.min_jaccard")
        found = open_source(f"filter.{modality}.decontaminate.{asked.name}", absolute(asked.source)).modality
        if found != modality:
            raise RecipeError(f"{where}: is of {found}, not of {modality}; see kind and modality")


def read_sets(
    store: Store,
    modality: str,
    sets: Sequence[Decontaminate],
    scoring: ScoringPass,
    limits: DecodeLimits,
    how: Execution,
    run: Run,
) -> list[EvaluationSet]:
    """Index and score evaluation sets, as far as that is not done; `run` brings some works up to date."""
    sources = {one.name: f"evaluation.{modality}.{one.name}" for one in sets}
    settings = {one.name: absolute(one.source) for one in sets}
    ingested = run(
        {
            name: ingest_work(store, source, settings[name], unit_bytes=how.unit_bytes)
            for name, source in sources.items()
        }
    )
    pieces = {
        name: slices(snapshot, settings[name], max_rows=how.unit_rows, max_bytes=how.unit_bytes)
        for name, (snapshot,) in ingested.items()
    }
    used = scorers_of_sets(sets, scoring)
    specs = [replace(spec, when="") for spec in scoring.specs if spec.name in used]
    bare = scoring_pass(modality, specs, scoring.sampling)
    works = {
        name: score_work(store, bare, parts, limits, {"ingest": ingested[name][0].digest})
        for name, parts in pieces.items()
        if parts and bare.specs
    }
    scores = run(works)
    found = [
        EvaluationSet(
            asked=one,
            source=sources[one.name],
            scored=tuple(scored_slices(pieces[one.name], scores.get(one.name, ()))),
            snapshots=(*ingested[one.name], *scores.get(one.name, ())),
        )
        for one in sets
    ]
    for name in (one.asked.name for one in found if not any(map(_num_good, one.scored))):
        log.warning("evaluation set %s: holds no good sample, so nothing is a copy of one", name)
    return found


def _num_good(part: Scored) -> int:
    """Count the samples of a slice that no scorer failed for, at least."""
    return part.piece.num_rows - max((sum(commit.counts.failed.values()) for _, commit in part.scores), default=0)
