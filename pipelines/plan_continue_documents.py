"""The documents that a window takes over from the plan before.

A document keeps its template, variant, repetition and run of frames. Pieces of one text that touch become one again,
and may be cut elsewhere; one of which a piece was consumed goes on at the id where that ended. Documents are laid out
anew from the indexes, all of a shard at once, since lengths alone do not say what a piece weighs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.named_tables import NamedTable, open_named_table
from tokenmill.manifests.plan_border import SAME_SHARD, Border, BorderReference, remaining_rows
from tokenmill.manifests.plan_pieces import PIECE_COLUMNS, joined
from tokenmill.manifests.stagedir import StageDir, read_table
from tokenmill.pipelines.plan_carried import GONE, LOWERED, SEEN, CarriedWindow, in_part
from tokenmill.pipelines.plan_continue_seen import SeenRows
from tokenmill.pipelines.plan_drawn import Drawn, Refused, drawn_from
from tokenmill.pipelines.plan_drawn import joined as joined_documents
from tokenmill.pipelines.plan_exclusion import NOTHING, Exclusion, exclusion_in
from tokenmill.pipelines.plan_laid_out import laid_out
from tokenmill.pipelines.plan_long import too_long
from tokenmill.pipelines.plan_samples import Samples
from tokenmill.pipelines.plan_spans import CUTTABLE, Document, spans_between
from tokenmill.pipelines.plan_templates import TEMPLATE_NAMES
from tokenmill.pipelines.plan_totals import modalities_of, source_totals
from tokenmill.pipelines.plan_wanted import share_draws
from tokenmill.pipelines.plan_windows import ShardPass
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.documents import document_spans
from tokenmill.tokenize.frames import take_frames
from tokenmill.tokenize.layouts import scan_segments
from tokenmill.tokenize.segments import segments_from_json
from tokenmill.tokenize.templates import PREFERENCE
from tokenmill.tokenize.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Carrying:
    """What planning the windows of a continued plan looks up.

    Attributes:
        shards: those that the plan before had too, with the epochs that the recipe asks for now.
        seen: what was consumed under other shards, or in a pass planned again.
    """

    border: Border
    shards: pl.DataFrame
    seen: SeenRows
    settings: PlanSettings
    vocabulary: Vocabulary
    exclusion: Exclusion = NOTHING

    @cached_property
    def _known(self) -> dict[str, dict[str, Any]]:
        return {row["shard"]: row for row in self.shards.iter_rows(named=True)}

    def taken_over(self, window: CarriedWindow) -> Carried:
        """Return what remains of a window of the plan before."""
        rows = _whole_documents(remaining_rows(self.border, window.number, PIECE_COLUMNS), window)
        found = Carried(rows_in=len(rows))
        for (shard,), group in rows.group_by("shard", maintain_order=True):
            if shard in self._known:
                self._take_over(found, group, self._known[str(shard)])
            else:
                found.leave_out_gone(group)
        return found

    def _take_over(self, found: Carried, rows: pl.DataFrame, shard: Mapping[str, Any]) -> None:
        index = open_named_table(self.border.plan.folder.store, shard["index"])
        (segments,) = index.codes(["segments"])
        for (repetition,), group in rows.group_by("repetition", maintain_order=True):
            one = _pass_of(shard, int(repetition), len(segments))
            refused = Refused()
            rows_in = len(group)
            group = _asked(group, one, index, self.settings, self.exclusion, refused)
            drawn = _fitting(_documents(group, segments, self.vocabulary, refused), self.settings, refused)
            found.add(one, rows_in, drawn, refused, index)


@dataclass(kw_only=True)
class Carried:
    """Documents taken over, pass by pass, and those that were not: `left_out` are rows of the `dropped` table."""

    rows_in: int
    passes: list[ShardPass] = field(default_factory=list)
    drawn: list[Drawn] = field(default_factory=list)
    left_out: list[tuple[Any, ...]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    totals: Counter[str] = field(default_factory=Counter)
    modalities: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, one: ShardPass, rows_in: int, drawn: Drawn, refused: Refused, index: NamedTable) -> None:
        self.totals.update(source_totals(one.source, rows_in, refused))
        self.modalities.append(modalities_of(index)[drawn.sample])
        self.passes.append(one)
        self.drawn.append(drawn)
        self.dropped += refused.dropped
        self.failed += refused.failed
        if refused.listed:
            keys = index.frame(["key"])["key"]
            for row, reason, message in sorted(refused.listed):
                self.left_out.append((one.source, one.archive, row, keys[row], reason, message))

    def leave_out_gone(self, rows: pl.DataFrame) -> None:
        """List documents whose shard left, without their keys: a plan must not name what was taken down."""
        self.dropped[GONE] += len(rows)
        for source, number in Counter(rows["source"]).items():
            self.totals.update({f"source.{source}.rows": number, f"source.{source}.dropped.{GONE}": number})
        for source, shard, row in rows.select("source", "shard", "sample").iter_rows():
            self.left_out.append((source, shard, row, "", GONE, "its shard left the sources; its index has the key"))


def open_carrying(
    folder: StageDir, border: BorderReference, settings: PlanSettings, vocabulary: Vocabulary
) -> Carrying:
    """Open what was prepared in a plan's folder before its units (`plan_continue_windows.prepare_windows`)."""
    before = border.open(folder.store)
    shards = read_table(folder.store, folder.at("shards.parquet"))
    return Carrying(
        border=before,
        shards=shards.join(before.plan.shards, on=SAME_SHARD, how="semi"),
        seen=SeenRows(path=folder.at(SEEN), data=folder.store.read_bytes(folder.at(SEEN))),
        settings=settings,
        vocabulary=vocabulary,
        exclusion=exclusion_in(folder),
    )


def _whole_documents(rows: pl.DataFrame, window: CarriedWindow) -> pl.DataFrame:
    """Join the pieces of texts that touch and the two of pairs, and choose those of a window's part."""
    chosen = rows.filter(in_part(rows["sample"].to_numpy(), window.part, window.parts))
    is_joined = pl.col("template").is_in([*CUTTABLE, PREFERENCE])
    together = pl.concat([chosen.filter(~is_joined), joined(chosen.filter(is_joined))])
    return together.sort("shard", "repetition", "sample", "frame", "start")


def _pass_of(shard: Mapping[str, Any], repetition: int, num_samples: int) -> ShardPass:
    return ShardPass(
        source=shard["source"],
        archive=shard["shard"],
        index=shard["index"],
        digest=digest_of([shard["shard_sha256"], shard["index_sha256"]]),
        repetition=repetition,
        share=min(1.0, max(0.0, shard["epochs"] - repetition)),
        num_samples=num_samples,
    )


def _asked(
    rows: pl.DataFrame,
    one: ShardPass,
    index: NamedTable,
    settings: PlanSettings,
    exclusion: Exclusion,
    refused: Refused,
) -> pl.DataFrame:
    """Take the documents that the recipe still asks for."""
    samples = rows["sample"].to_numpy().astype(np.int64)
    is_wanted = np.ones(len(rows), np.bool_)
    if len(exclusion.names):
        is_excluded = exclusion.mask(one.source, index.frame(["key"])["key"].gather(samples))
        refused.without(samples, is_excluded, SampleError("excluded", "on the list of excluded keys"))
        is_wanted &= ~is_excluded
    if one.share < 1.0:
        draws = share_draws(index, one, settings)[samples]
        told = f"pass {one.repetition} takes {one.share:g} of the source now"
        refused.without(samples, is_wanted & (draws >= one.share), SampleError(LOWERED, told))
        is_wanted &= draws < one.share
    return rows.filter(is_wanted)


def _documents(rows: pl.DataFrame, segments: pa.DictionaryArray, vocabulary: Vocabulary, refused: Refused) -> Drawn:
    """Lay the documents out: whole ones all at once, runs of frames and what begins or ends inside one by one."""
    told = {name: rows[name].to_numpy().astype(np.int64) for name in ("sample", "variant", "start", "length", "frames")}
    places = {name: place for place, name in enumerate(TEMPLATE_NAMES)}
    template = np.array([places[name] for name in rows["template"]], np.int64)
    string = np.asarray(segments.indices.fill_null(0).to_numpy(zero_copy_only=False), np.int64)[told["sample"]]
    nothing = np.zeros(len(rows), np.int64)
    samples = Samples(row=told["sample"], string=string, kind=nothing, variant=told["variant"], template=template)
    drawn = laid_out(samples, scan_segments(segments.dictionary), vocabulary, refused)
    is_whole = (told["frames"] == 0) & (told["start"] == 0)
    is_whole &= drawn.length == told["length"]
    others = rows.filter(~is_whole)
    made = drawn_from([_part(row, segments, vocabulary) for row in others.iter_rows(named=True)])
    together = joined_documents([drawn.taken(is_whole), made])
    return together.taken(np.lexsort((together.start, together.frame, together.sample)))


def _part(row: Mapping[str, Any], segments: pa.DictionaryArray, vocabulary: Vocabulary) -> Document:
    parts = segments_from_json(json.loads(segments[row["sample"]].as_py()))
    if row["frames"]:
        parts = take_frames(parts, row["frame"], row["frames"])
    spans = document_spans(parts, row["template"], vocabulary, row["variant"])
    return Document(
        sample=row["sample"],
        template=row["template"],
        variant=row["variant"],
        spans=spans_between(spans, row["start"], row["start"] + row["length"]),
        frame=row["frame"],
        frames=row["frames"],
        start=row["start"],
    )


def _fitting(drawn: Drawn, settings: PlanSettings, refused: Refused) -> Drawn:
    """Leave out what has to stay whole and is longer than the context."""
    is_long = (drawn.length > settings.context) & ~drawn.cuttable
    for number in np.flatnonzero(is_long).tolist():
        refused.add(int(drawn.sample[number]), too_long(drawn.document(number), settings))
    return drawn.taken(~is_long)


def numbered(carried: Carried, first: int) -> Iterator[Drawn]:
    """Yield the documents with the numbers of their passes, counted from `first`."""
    for number, drawn in enumerate(carried.drawn, start=first):
        yield replace(drawn, shard=np.full(len(drawn), number, np.int32))
