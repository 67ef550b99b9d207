"""The documents that a window takes over from the plan before, and the rows of new shards that were seen already.

A document keeps its template, variant, repetition and run of frames. Pieces of one text that touch become one again,
and may be cut elsewhere; one of which a piece was consumed goes on at the id where that ended.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from tokenmill.errors import ManifestError, SampleError, StorageError
from tokenmill.faults import fault_point
from tokenmill.manifests.plan_border import Border, BorderReference, remaining_rows
from tokenmill.manifests.plan_pieces import PIECE_COLUMNS, joined
from tokenmill.manifests.plans import PLAN_SCHEMA, read_named_table
from tokenmill.manifests.stagedir import StageDir, read_table, table_bytes
from tokenmill.pipelines.plan_carried import GONE, CarriedWindow
from tokenmill.pipelines.plan_continue_seen import seen_samples
from tokenmill.pipelines.plan_continue_windows import carried_windows, fresh_passes, in_part, spread_windows
from tokenmill.pipelines.plan_documents import share_draw
from tokenmill.pipelines.plan_spans import CUTTABLE, Document, spans_between
from tokenmill.pipelines.plan_windows import ShardPass, Window
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.documents import document_spans, segments_from_json
from tokenmill.tokenize.frames import take_frames
from tokenmill.tokenize.vocabulary import Vocabulary

SEEN = "seen.parquet"
_SHARD = ("shard", "index", "shard_sha256", "index_sha256")


def prepare_windows(
    folder: StageDir,
    border: Border,
    shards: pl.DataFrame,
    passes: Sequence[ShardPass],
    settings: PlanSettings,
    *,
    write: bool,
) -> list[Window]:
    """Return the windows of a plan that goes on from a border; writes what their units look up, if it may.

    `shards` and `passes` are all that the recipe asks for; what the plan before had of them is not planned again.
    """
    same = border.plan.shards.join(shards, on=_SHARD, how="semi")
    fresh = fresh_passes(passes, dict(same.select("shard", "epochs").iter_rows()))
    carried = carried_windows(border)
    if write and not folder.store.exists(folder.at(SEEN)):
        seen = seen_samples(border, shards, fresh)
        folder.store.put(folder.at("shards.parquet"), table_bytes(shards, PLAN_SCHEMA))
        folder.store.put(folder.at(SEEN), table_bytes(seen, PLAN_SCHEMA))
        fault_point("plan:after-seen")
    return spread_windows(folder.config.digest, fresh, carried, settings)


@dataclass(frozen=True, kw_only=True)
class Carrying:
    """What planning the windows of a continued plan looks up."""

    border: Border
    shards: pl.DataFrame  # those the plan before had too, as they are now
    seen: pl.DataFrame
    settings: PlanSettings
    vocabulary: Vocabulary

    def seen_of(self, shard: ShardPass) -> frozenset[int]:
        """Return the rows of a shard's index that were consumed before in this pass."""
        rows = self.seen.filter((pl.col("shard") == shard.archive) & (pl.col("repetition") == shard.repetition))
        return frozenset(rows["sample"])

    def documents(self, window: CarriedWindow) -> Carried:
        """Return what remains of a window of the plan before."""
        rows = _whole_documents(remaining_rows(self.border, window.number, PIECE_COLUMNS), window)
        found = Carried(rows_in=len(rows))
        for (shard,), group in rows.group_by("shard", maintain_order=True):
            known = self.shards.filter(pl.col("shard") == shard)
            if known.is_empty():
                found.leave_out_all(group, GONE, "its shard left the sources", self._old_keys(str(shard)))
            else:
                self._take_over(found, group, known.row(0, named=True))
        return found

    def _take_over(self, found: Carried, rows: pl.DataFrame, shard: Mapping[str, Any]) -> None:
        store = self.border.plan.folder.store
        index = read_named_table(store, shard["index"], ["key", "segments"])
        for row in rows.iter_rows(named=True):
            key, segments = index.row(row["sample"])
            one = _pass_of(row, shard, len(index))
            try:
                _check_asked(one, key, self.settings)
                found.drawn.append((one, self._document(row, segments)))
            except SampleError as error:
                found.leave_out(row, key, error.reason, error.message)

    def _document(self, row: Mapping[str, Any], told: str) -> Document:
        segments = segments_from_json(json.loads(told))
        if row["frames"]:
            segments = take_frames(segments, row["frame"], row["frames"])
        spans = document_spans(segments, row["template"], self.vocabulary, row["variant"])
        document = Document(
            sample=row["sample"],
            template=row["template"],
            variant=row["variant"],
            spans=spans_between(spans, row["start"], row["start"] + row["length"]),
            frame=row["frame"],
            frames=row["frames"],
            start=row["start"],
        )
        if document.length > self.settings.context and not document.cuttable:
            raise SampleError("too_long", f"{document.length} ids, the context is {self.settings.context}")
        return document

    def _old_keys(self, shard: str) -> Sequence[str]:
        """Return the keys of a shard that left; none if its index left too."""
        try:
            keys = read_named_table(self.border.plan.folder.store, self.border.plan.index_of[shard], ["key"])["key"]
            return keys.to_list()
        except (ManifestError, StorageError):
            return ()


@dataclass(kw_only=True)
class Carried:
    """Documents taken over, and those that were not, with the reason."""

    rows_in: int
    drawn: list[tuple[ShardPass, Document]] = field(default_factory=list)
    left_out: list[tuple[Any, ...]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def leave_out(self, row: Mapping[str, Any], key: str, reason: str, message: str) -> None:
        self.reasons[reason] += 1
        self.left_out.append((row["source"], row["shard"], row["sample"], key, reason, message))

    def leave_out_all(self, rows: pl.DataFrame, reason: str, message: str, keys: Sequence[str]) -> None:
        for row in rows.iter_rows(named=True):
            self.leave_out(row, keys[row["sample"]] if row["sample"] < len(keys) else "", reason, message)


def open_carrying(
    folder: StageDir, border: BorderReference, settings: PlanSettings, vocabulary: Vocabulary
) -> Carrying:
    """Open what `prepare_windows` wrote into a plan's folder."""
    store = folder.store
    before = border.open(store)
    shards = read_table(store, folder.at("shards.parquet"))
    return Carrying(
        border=before,
        shards=shards.join(before.plan.shards, on=_SHARD, how="semi"),
        seen=read_table(store, folder.at(SEEN)),
        settings=settings,
        vocabulary=vocabulary,
    )


def _whole_documents(rows: pl.DataFrame, window: CarriedWindow) -> pl.DataFrame:
    """Join the pieces of texts that touch, and choose those of a window's part."""
    chosen = rows.filter(in_part(rows["sample"].to_numpy(), window.part, window.parts))
    is_text = pl.col("template").is_in(CUTTABLE)
    together = pl.concat([chosen.filter(~is_text), joined(chosen.filter(is_text))])
    return together.sort("shard", "sample", "repetition", "frame", "start")


def _pass_of(row: Mapping[str, Any], shard: Mapping[str, Any], num_samples: int) -> ShardPass:
    return ShardPass(
        source=row["source"],
        archive=row["shard"],
        index=shard["index"],
        digest="",
        repetition=row["repetition"],
        share=min(1.0, shard["epochs"] - row["repetition"]),
        num_samples=num_samples,
    )


def _check_asked(one: ShardPass, key: str, settings: PlanSettings) -> None:
    """Refuse a document that the recipe does not ask for any more."""
    if key in settings.exclude:
        raise SampleError("excluded", "on the list of excluded keys")
    if one.share < 1.0 and share_draw(settings.seed, one.source, key, one.repetition) >= one.share:
        raise SampleError("lowered", f"pass {one.repetition} takes {max(0.0, one.share):g} of the source now")
