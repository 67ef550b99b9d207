"""The plan stage: from tokenize snapshots to the packs of a training phase, window by window.

A unit is a window: whole shards, shuffled by the plan's seed, that are packed together. A window's plan is a pure
function of (plan id, window), so windows run anywhere in any order and a phase of 10^9 samples never has to fit into
memory. The price is one half-filled pack a window; a window has 20,000 documents unless the recipe says otherwise.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from tokenmill.errors import ManifestError, RecipeError, SampleError
from tokenmill.faults import fault_point
from tokenmill.manifests.identity import digest_of, short
from tokenmill.manifests.plans import PLAN_SCHEMA, Plan, open_plan, read_named_table
from tokenmill.manifests.records import Commit, Counts
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir, table_bytes
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit
from tokenmill.pipelines.packing import pack
from tokenmill.pipelines.plan_description import describe_plan
from tokenmill.pipelines.plan_documents import Drawer
from tokenmill.pipelines.plan_tables import Drawn, PlannedWindow, window_tables
from tokenmill.pipelines.plan_windows import ShardPass, Window, check_sources, windows_of
from tokenmill.pipelines.runner import run_stage
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import Vocabulary, build_vocabulary

PLAN_VERSION = 4


def plan_folder(store: Store, snapshots: Sequence[Snapshot], settings: PlanSettings) -> StageDir:
    """Give the folder of the plan over these tokenize snapshots; its config digest is the plan id.

    Raises RecipeError when sources are missing, mixed twice, or tokenized with different vocabularies.
    """
    check_sources(snapshots, settings)
    config = StageConfig(
        stage="plan",
        version=PLAN_VERSION,
        schema=PLAN_SCHEMA,
        settings={
            "plan": settings.model_dump(mode="json"),
            "snapshots": {snapshot.folder.source: snapshot.digest for snapshot in snapshots},
        },
        fingerprints={"vocabulary": plan_vocabulary(snapshots).fingerprint},
    )
    return StageDir(store=store, source="plan", config=config, base=f"plans/{settings.phase}/{short(config.digest)}")


def plan_vocabulary(snapshots: Sequence[Snapshot]) -> Vocabulary:
    """Build the one vocabulary that all the snapshots were tokenized with; raises RecipeError if they differ."""
    found: dict[str, tuple[str, Vocabulary]] = {}
    for snapshot in snapshots:
        vocabulary = build_vocabulary(snapshot.folder.config.settings["vocabulary"])
        found.setdefault(vocabulary.fingerprint, (snapshot.folder.path, vocabulary))
    if len(found) != 1:
        raise RecipeError(
            "plan: the sources were tokenized with different vocabularies: "
            + " and ".join(f"{path} ({vocabulary.name}, {vocabulary.size} ids)" for path, vocabulary in found.values())
        )
    return next(iter(found.values()))[1]


def plan_window(folder: StageDir, window: Window, settings: PlanSettings, vocabulary: Vocabulary) -> PlannedWindow:
    """Draw, pack and shuffle the documents of one window; reads its indexes, writes nothing."""
    draws = _Draws()
    for shard in window.shards:
        drawer = Drawer(plan_id=folder.config.digest, source=shard.source, settings=settings, vocabulary=vocabulary,
                        repetition=shard.repetition, share=shard.share)  # fmt: skip
        draws.add(shard, drawer, read_named_table(folder.store, shard.index, ["key", "modality", "segments"]))
    lengths = [document.length for _, document in draws.drawn]
    cuttable = [document.cuttable for _, document in draws.drawn]
    packs = pack(lengths, cuttable, settings.context, settings.min_piece)
    order = _shuffled(len(packs), folder.config.digest, window.unit)
    counts = Counts(rows_in=draws.rows_in, kept=draws.kept, out=len(packs), dropped=draws.reasons, failed=draws.failed)
    return window_tables([packs[number] for number in order], draws.drawn, draws.left_out, counts, settings)


def commit_window(folder: StageDir, window: Window, planned: PlannedWindow) -> Commit:
    """Publish a window's tables, then its record."""
    tables = {"rows": planned.documents, "packs": planned.packs, "dropped": planned.dropped}
    suffixes = {"rows": ".parquet", "packs": ".packs.parquet", "dropped": ".dropped.parquet"}
    files = tuple(
        folder.publish_bytes(window.unit, suffixes[role], table_bytes(table, PLAN_SCHEMA), role)
        for role, table in tables.items()
    )
    commit = Commit(
        stage="plan",
        source=folder.source,
        config=folder.config.digest,
        unit=window.unit,
        inputs=window.inputs,
        counts=planned.counts,
        files=files,
        totals=planned.totals,
    )
    return folder.publish_commit(commit)


def write_plan(store: Store, snapshots: Sequence[Snapshot], settings: PlanSettings) -> Plan:
    """Plan a phase in this process, resuming; a finished plan is only opened."""
    return run_plan(store, snapshots, settings, RunOptions(quiet=True))


def run_plan(store: Store, snapshots: Sequence[Snapshot], settings: PlanSettings, options: RunOptions) -> Plan:
    """Plan a phase as the runner is told to (in this process or on a pool), resuming."""
    folder = plan_folder(store, snapshots, settings)
    windows = windows_of(folder.config.digest, snapshots, settings)
    work = StageWork(
        title=f"plan {settings.phase}",
        folders=(folder,),
        units=[Unit(inputs=window.inputs, payload={"window": window}) for window in windows],
        make_worker=partial(PlanWorker, settings, plan_vocabulary(snapshots).spec),
        parents={f"{snapshot.folder.config.stage}/{snapshot.folder.source}": snapshot.digest for snapshot in snapshots},
    )
    ((plan,),) = run_stage("plan", [work], options)
    return finish_plan(plan, windows, snapshots, settings)


class PlanWorker:
    """Plans one window after the other."""

    def __init__(self, settings: PlanSettings, vocabulary: Mapping[str, Any]) -> None:
        self._settings, self._vocabulary = settings, build_vocabulary(vocabulary)

    def close(self) -> None:
        pass

    def __call__(self, job: Job) -> JobResult:
        started = time.perf_counter()
        (target,) = job.targets
        window: Window = job.unit.payload["window"]
        fault_point("commit:before-data")
        planned = plan_window(target.folder, window, self._settings, self._vocabulary)
        planned_s = time.perf_counter() - started
        commit = commit_window(target.folder, window, planned)
        return JobResult(
            commits=(commit,), seconds={"pack": planned_s, "write": time.perf_counter() - started - planned_s}
        )


def finish_plan(
    plan: Snapshot, windows: Sequence[Window], snapshots: Sequence[Snapshot], settings: PlanSettings
) -> Plan:
    """Publish the plan's description, once all windows are there."""
    if plan.counts.out == 0:
        raise RecipeError(
            f"plan: no document is left for phase {settings.phase} ({dict(plan.counts.dropped)}); "
            "see plan.templates, plan.context and plan.held_out"
        )
    folder = plan.folder
    if not folder.store.exists(folder.at("plan.json")):
        describe_plan(plan, snapshots, settings, [shard for window in windows for shard in window.shards])
    return open_plan(folder.store, folder.path)


_UNREMARKABLE = ("held_out", "training", "not_drawn")  # what the recipe asked for: counted, but not listed by sample


@dataclass
class _Draws:
    """The documents of a window, and the samples that gave none."""

    drawn: list[Drawn] = field(default_factory=list)
    left_out: list[tuple[Any, ...]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    rows_in: int = 0
    kept: int = 0

    def add(self, shard: ShardPass, drawer: Drawer, rows: pl.DataFrame) -> None:
        for sample, row in enumerate(rows.iter_rows(named=True)):
            if row["segments"] is None:  # failed to tokenize: counted there, and never a document
                continue
            self.rows_in += 1
            try:
                self.drawn += [(shard, document) for document in drawer.documents(sample, row)]
                self.kept += 1
            except SampleError as error:
                self.reasons[error.reason] += 1
                if error.reason not in _UNREMARKABLE:
                    self._leave_out(shard, sample, row["key"], error.reason, error.message)
            except (ManifestError, ValueError) as error:
                self.failed["bad_segments"] += 1
                self._leave_out(shard, sample, row["key"], "bad_segments", str(error)[:200])

    def _leave_out(self, shard: ShardPass, sample: int, key: str, reason: str, message: str) -> None:
        self.left_out.append((shard.source, shard.archive, sample, key, reason, message))


def _shuffled(count: int, plan_id: str, unit: str) -> list[int]:
    """Give a random order of `count` packs that depends on the plan and the window alone."""
    seed = int(digest_of([plan_id, unit, "packs"])[:16], 16)
    return [int(number) for number in np.random.default_rng(seed).permutation(count)]
