"""Stage score: samples → columns, one folder a scorer, one decode for all scorers that lack a unit.

A gated scorer leaves null behind its gate; the cheap scorers its gate reads are run again beside it where they are not
part of the pass, which costs less than reading their tables. Scorers that read captions are works of their own: their
units hang on the captions as well as on the bytes, so a changed caption costs nobody else anything. Those that read
nothing but captions read no byte of a picture: they score every indexed sample, those with broken pictures too. Of
clips a few frames a second are decoded, once for all scorers of a work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tokenmill.filters.clip import Sampling
from tokenmill.manifests.stagedir import StageDir
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.decoding import DecodeLimits, SampleReader
from tokenmill.pipelines.jobs import StageWork, Unit
from tokenmill.pipelines.samples import SampleSlice
from tokenmill.pipelines.score_worker import ScoreWorker
from tokenmill.pipelines.scoring_pass import Reads, ScorerSpec, ScoringPass, scoring_pass


def score_work(
    store: Store, scoring: ScoringPass, pieces: Sequence[SampleSlice], limits: DecodeLimits, parents: Mapping[str, str]
) -> StageWork:
    """Describe the scoring of one source by scorers that see nothing but the samples themselves."""
    return _work(store, scoring, pieces, limits, parents, "pictures")


def score_works(
    store: Store, scoring: ScoringPass, pieces: Sequence[SampleSlice], limits: DecodeLimits, parents: Mapping[str, str]
) -> dict[Reads, StageWork]:
    """Describe the scoring of one source, by what its scorers read; works without a scorer are left out."""
    kinds: tuple[Reads, ...] = ("pictures", "both", "captions")
    works = {kind: _work(store, scoring, pieces, limits, parents, kind) for kind in kinds}
    return {kind: work for kind, work in works.items() if work.folders}


def _work(
    store: Store, scoring: ScoringPass, pieces: Sequence[SampleSlice], limits: DecodeLimits,
    parents: Mapping[str, str], reads: Reads,
) -> StageWork:  # fmt: skip
    source, settings = pieces[0].source, pieces[0].settings
    folders = tuple(
        StageDir(store=store, source=source, config=scoring.config(spec, limits))
        for spec in scoring.specs_that_read(reads)
    )
    fingerprints = {name: value for folder in folders for name, value in folder.config.fingerprints.items()}
    digest, told = ("content", "") if reads == "pictures" else ("rows", " captions")
    how = (scoring.modality, scoring.specs, scoring.sampling)
    return StageWork(
        title=f"score {source}{told if reads != 'both' else ' pictures and captions'}",
        folders=folders,
        units=[Unit(inputs=(piece.reference(digest),), payload={"slice": piece}) for piece in pieces],
        make_worker=partial(_make_worker, source, dict(settings), how, limits, fingerprints),
        parents=parents,
    )


def _make_worker(
    source: str, settings: Mapping[str, Any], how: tuple[str, tuple[ScorerSpec, ...], Sampling | None],
    limits: DecodeLimits, fingerprints: Mapping[str, str],
) -> ScoreWorker:  # fmt: skip
    return ScoreWorker(scoring_pass(*how), partial(SampleReader, source, settings, limits), fingerprints)
