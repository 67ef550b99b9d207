"""How many tokens one pass over a source makes under its templates, counted from index files.

Up to 64 index files a source are read, chosen by a hash, all where there are no more. Templates and captions are drawn
sample by sample, so what is counted is the expectation: a mean over the templates that fit, by their shares, and over
captions. What a thousand samples then really make differs by the luck of those draws, about 1 %; a plan reports it.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.manifests.plans import read_named_table
from tokenmill.manifests.records import Commit
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.pipelines.plan_draws import uniform
from tokenmill.pipelines.plan_exclusion import Exclusion
from tokenmill.pipelines.plan_long import fitting
from tokenmill.pipelines.plan_mix import SourceTokens
from tokenmill.pipelines.plan_spans import CUTTABLE, Document
from tokenmill.pipelines.plan_wanted import is_of_other_part
from tokenmill.pipelines.plan_windows import ids_of
from tokenmill.settings_mix import PAIRS
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.documents import TextSegment, document_spans, segments_from_json
from tokenmill.tokenize.templates import is_pair
from tokenmill.tokenize.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenmill.tokenize.layouts import Scanned

FILES_A_SOURCE = 64
_READ_AT_ONCE = 4
_LONG_LAID_OUT = 64  # of the documents longer than the context, as many are laid out one by one; the rest is like them


@dataclass(frozen=True, slots=True)
class _File:
    tokens: float
    samples: int
    size: float  # what tokens are proportional to: ids where records tell them, else samples
    reasons: Mapping[str, float]


def measure_source(
    snapshot: Snapshot, settings: PlanSettings, vocabulary: Vocabulary, exclusion: Exclusion
) -> SourceTokens:
    """Count the tokens of one pass over a source, whatever `plan.mix` says of how much to take."""
    by_ids = all(ids_of(commit) is not None for commit in snapshot.commits)
    sizes = [_size(commit, by_ids) for commit in snapshot.commits]
    whole = sum(sizes)
    chosen = _chosen(snapshot)
    measure = partial(_measure_file, snapshot, settings, vocabulary, exclusion, by_ids)
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        files = list(pool.map(measure, chosen))
    read = sum(one.size for one in files)
    scale = whole / read if read else 0.0
    reasons: dict[str, float] = defaultdict(float)
    for reason, number in (item for one in files for item in one.reasons.items()):
        reasons[reason] += number
    return SourceTokens(
        tokens=sum(one.tokens for one in files) * scale,
        samples=sum(one.samples for one in files) * scale,
        files=len(sizes),
        read=len(files),
        error=_error(files, len(sizes)),
        reasons={reason: round(number, 3) for reason, number in sorted(reasons.items()) if number},
    )


def _size(commit: Commit, by_ids: bool) -> float:
    return float((ids_of(commit) or 0) if by_ids else commit.counts.out)


def _chosen(snapshot: Snapshot) -> list[Commit]:
    """Choose the files to read: all, or those with the smallest hashes of their names."""
    commits = list(snapshot.commits)
    if len(commits) <= FILES_A_SOURCE:
        return commits
    return sorted(commits, key=lambda commit: uniform("measured", snapshot.folder.source, commit.unit))[:FILES_A_SOURCE]


def _error(files: Sequence[_File], num_files: int) -> float:
    """Give the standard error of the estimate by ratio, as a share of it."""
    total = sum(one.tokens for one in files)
    if len(files) == num_files or len(files) < 2 or not total:
        return 0.0
    ratio = total / sum(one.size for one in files)
    left = [one.tokens - ratio * one.size for one in files]
    spread = math.sqrt(sum(value * value for value in left) / (len(files) - 1))
    return spread * math.sqrt((1 - len(files) / num_files) / len(files)) / (total / len(files))


def _measure_file(
    snapshot: Snapshot,
    settings: PlanSettings,
    vocabulary: Vocabulary,
    exclusion: Exclusion,
    by_ids: bool,
    commit: Commit,
) -> _File:
    folder = snapshot.folder
    table = read_named_table(folder.store, folder.at(commit.rows.name), ["key", "modality", "segments"])
    rows = _of_part(table.filter(pl.col("segments").is_not_null()), folder.source, settings, exclusion)
    reasons: dict[str, float] = defaultdict(float)
    tokens = 0.0
    for (modality,), group in rows.group_by("modality", maintain_order=True):
        counter = _Counting(folder.source, str(modality), settings, vocabulary, reasons)
        tokens += float(counter.expected(group["segments"]).sum())
    return _File(tokens, len(rows), _size(commit, by_ids), reasons)


def _of_part(rows: pl.DataFrame, source: str, settings: PlanSettings, exclusion: Exclusion) -> pl.DataFrame:
    """Keep the samples that the plan's part has: neither excluded nor on the other side of the held-out line."""
    rows = rows.filter(pl.Series(~exclusion.mask(source, rows["key"]), dtype=pl.Boolean))
    if settings.held_out in (0.0, 1.0):
        return rows if settings.held_out == (settings.part == "held_out") else rows.clear()
    is_other = [is_of_other_part(source, key, settings) for key in rows["key"]]
    return rows.filter(~pl.Series(is_other, dtype=pl.Boolean))


@dataclass(frozen=True)
class _Counting:
    """Counts the expected ids of documents of one source and modality."""

    source: str
    modality: str
    settings: PlanSettings
    vocabulary: Vocabulary
    reasons: dict[str, float]

    def expected(self, strings: pl.Series) -> NDArray[np.float64]:
        """Return the expected ids of each sample, float64 (N,)."""
        from tokenmill.tokenize.layouts import scan_segments

        scanned = scan_segments(strings.to_arrow())
        kinds, captions = zip(*(self._about(signature) for signature in scanned.signatures), strict=True)
        found = np.zeros(len(strings))
        for variant in sorted({variant for some in captions for variant in some}):
            share = np.array([1 / len(some) if variant in some else 0.0 for some in captions])[scanned.signature]
            chosen = np.flatnonzero(share)
            found[chosen] += self._of_variant(scanned, strings, chosen, share[chosen], variant, kinds)
        return found

    def _about(self, signature: bytes) -> tuple[str, tuple[int, ...]]:
        """Say of samples of one signature whose templates they draw from, and which captions they are drawn with."""
        from tokenmill.tokenize.layouts import signature_segments

        segments = signature_segments(signature)
        if isinstance(segments, SampleError):
            return self.modality, (0,)
        texts = [segment for segment in segments if isinstance(segment, TextSegment)]
        is_image = self.modality == "document" and {text.role for text in texts} == {"caption"}
        kind = "image" if is_image and "image" in self.settings.templates else self.modality
        kind = PAIRS if is_pair(segments) else kind
        variants = sorted({text.variant for text in texts if text.role == "caption" and text.answer is None}) or [0]
        return kind, tuple(variants[:1] if self.settings.captions == "first" else variants)

    def _of_variant(
        self,
        scanned: Scanned,
        strings: pl.Series,
        chosen: NDArray[np.int64],
        shown: NDArray[np.float64],
        variant: int,
        kinds: Sequence[str],
    ) -> NDArray[np.float64]:
        """Give the expected ids of some samples with one caption: the mean over the templates that fit.

        `shown` is the share of the draws in which each sample shows this caption.
        """
        from tokenmill.tokenize.layouts import lay_out_scanned

        shares = {kind: dict(self.settings.templates_of(self.source, kind)) for kind in set(kinds)}
        weighted, weights, lost, empty = np.zeros((4, len(chosen)))
        for template in sorted({name for found in shares.values() for name, share in found.items() if share}):
            share = np.array([shares[kind].get(template, 0.0) for kind in kinds])[scanned.signature[chosen]]
            layouts, refused = lay_out_scanned(scanned, chosen, template, variant, self.vocabulary)
            fits = share > 0
            fits[list(refused)] = False
            is_empty = fits & (layouts.contents == 0)
            lengths = np.where(is_empty, 0.0, layouts.totals)
            lengths, is_lost = self._fitted(lengths, strings, chosen, template, variant, fits)
            weighted += np.where(fits, share * lengths, 0.0)
            weights += np.where(fits, share, 0.0)
            lost += np.where(is_lost, share, 0.0)
            empty += np.where(is_empty, share, 0.0)
        whole = np.where(weights, weights, 1.0)
        self.reasons["no_template"] += float(shown[weights == 0].sum())
        self.reasons["too_long"] += float((shown * lost / whole).sum())
        self.reasons["empty"] += float((shown * empty / whole).sum())
        return np.asarray(shown * weighted / whole)

    def _fitted(
        self,
        lengths: NDArray[np.float64],
        strings: pl.Series,
        chosen: NDArray[np.int64],
        template: str,
        variant: int,
        fits: NDArray[np.bool_],
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Replace the lengths of documents above the context by what is taken of them; says which are left out.

        The first 64 are laid out one by one; the others are taken to keep the same share of their ids.
        """
        is_lost = np.zeros(len(lengths), np.bool_)
        long = np.flatnonzero(fits & (lengths > self.settings.context))
        if template in CUTTABLE or not len(long):
            return lengths, is_lost
        lengths = lengths.copy()
        known = long[:_LONG_LAID_OUT]
        before = lengths[known].sum()
        for place in known:
            lengths[place] = self._taken_of_long(strings[int(chosen[place])], template, variant)
        is_lost[known] = lengths[known] == 0
        lengths[long[_LONG_LAID_OUT:]] *= lengths[known].sum() / before
        is_lost[long[_LONG_LAID_OUT:]] = bool(is_lost[known].all())
        return lengths, is_lost

    def _taken_of_long(self, string: str, template: str, variant: int) -> float:
        segments = segments_from_json(json.loads(string))
        spans = document_spans(segments, template, self.vocabulary, variant)
        document = Document(sample=0, template=template, variant=variant, spans=spans)
        try:
            return float(sum(one.length for one in fitting(document, segments, self.settings, self.vocabulary)))
        except SampleError:
            return 0.0


def measured_sources(
    snapshots: Sequence[Snapshot], settings: PlanSettings, vocabulary: Vocabulary, exclusion: Exclusion
) -> Iterator[tuple[str, SourceTokens]]:
    """Yield every source that the mix takes something of, with what one pass over it makes."""
    for snapshot in snapshots:
        source = snapshot.folder.source
        if settings.of_source(source).is_taken:
            yield source, measure_source(snapshot, settings, vocabulary, exclusion)
