"""The plan stage: from tokenize snapshots to the packs of a training phase, window by window.

A unit is a window: whole shards, shuffled by the plan's seed, that are packed together. A window's plan is a pure
function of (plan id, window), so windows run anywhere in any order and a phase of 10^9 samples never has to fit into
memory. The price is one half-filled pack a window; a window has 20,000 documents unless the recipe says otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.faults import fault_point
from tokenmill.manifests.identity import short
from tokenmill.manifests.plans import PLAN_SCHEMA, Plan, open_plan
from tokenmill.manifests.records import Commit
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir, table_bytes
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit
from tokenmill.pipelines.plan_description import describe_plan
from tokenmill.pipelines.plan_tables import PlannedWindow
from tokenmill.pipelines.plan_window import plan_window
from tokenmill.pipelines.plan_windows import Window, check_sources, windows_of
from tokenmill.pipelines.runner import run_stage
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import Vocabulary, build_vocabulary

PLAN_VERSION = 5


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
