"""The plan stage: from tokenize snapshots to the packs of a training phase, window by window.

A unit is a window: whole shards, shuffled by the plan's seed, that are packed together. A window's plan is a pure
function of (plan id, window), so windows run anywhere in any order and a phase of 10^9 samples never has to fit into
memory. The price is one half-filled pack a window; a window has 20,000 documents unless the recipe says otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tokenmill.errors import RecipeError
from tokenmill.faults import fault_point
from tokenmill.manifests.identity import short
from tokenmill.manifests.plan_border import Border, BorderReference
from tokenmill.manifests.plans import PLAN_SCHEMA, Plan, open_plan
from tokenmill.manifests.records import Commit
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir, table_bytes
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit
from tokenmill.pipelines.plan_continue import check_continued
from tokenmill.pipelines.plan_continue_windows import prepare_windows
from tokenmill.pipelines.plan_description import describe_plan, shard_table
from tokenmill.pipelines.plan_exclusion import Exclusion, read_exclusion
from tokenmill.pipelines.plan_mix import Mix, find_mix
from tokenmill.pipelines.plan_windows import Window, check_passes, check_sources, passes_of, windows_of
from tokenmill.pipelines.runner import run_stage
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import Vocabulary, build_vocabulary

if TYPE_CHECKING:
    from tokenmill.pipelines.plan_continue_documents import Carrying
    from tokenmill.pipelines.plan_tables import PlannedWindow

PLAN_VERSION = 5


def plan_folder(
    store: Store,
    snapshots: Sequence[Snapshot],
    settings: PlanSettings,
    exclusion: Exclusion | None = None,
    continues: Mapping[str, Any] | None = None,
) -> StageDir:
    """Give the folder of the plan over these tokenize snapshots; its config digest is the plan id.

    `exclusion` is what the plan leaves out, if it was read already; `continues` says from where in another plan it goes
    on (`Border.identity`). Raises RecipeError when sources are missing, mixed twice, or tokenized with different
    vocabularies.
    """
    check_sources(snapshots, settings)
    left_out = read_exclusion(settings) if exclusion is None else exclusion
    config = StageConfig(
        stage="plan",
        version=PLAN_VERSION,
        schema=PLAN_SCHEMA,
        settings={
            "plan": settings.model_dump(mode="json", exclude={"phases", "exclude", "exclude_files"}),
            "excluded": left_out.digest,
            "snapshots": {snapshot.folder.source: snapshot.digest for snapshot in snapshots},
            **({"continues": dict(continues)} if continues is not None else {}),
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


def write_plan(
    store: Store, snapshots: Sequence[Snapshot], settings: PlanSettings, border: Border | None = None
) -> Plan:
    """Plan a phase in this process, resuming; a finished plan is only opened."""
    borders = {settings.phase: border} if border is not None else {}
    return run_plans(store, snapshots, [settings], RunOptions(quiet=True), borders=borders)[0]


def run_plans(
    store: Store,
    snapshots: Sequence[Snapshot],
    phases: Sequence[PlanSettings],
    options: RunOptions,
    storage: Mapping[str, Any] | None = None,
    borders: Mapping[str, Border] | None = None,
) -> list[Plan]:
    """Plan some phases as the runner is told to (in this process or on one pool), resuming.

    `storage` says how lists of excluded samples are reached; a phase in `borders` goes on from there in another plan.
    Raises RecipeError for what the snapshots cannot give.
    """
    snapshots = sorted(snapshots, key=lambda one: one.folder.source)  # in which order they come is no part of a plan
    found = {one.phase: (borders or {}).get(one.phase) for one in phases}
    described = [
        _describe_work(store, snapshots, one, storage, found[one.phase], may_write=options.allow_work) for one in phases
    ]
    plans = run_stage("plan", [work for work, _ in described], options)
    return [
        finish_plan(plan, mix, snapshots, settings, found[settings.phase])
        for (plan,), (_, mix), settings in zip(plans, described, phases, strict=True)
    ]


def _describe_work(
    store: Store,
    snapshots: Sequence[Snapshot],
    settings: PlanSettings,
    storage: Mapping[str, Any] | None,
    border: Border | None,
    *,
    may_write: bool,
) -> tuple[StageWork, Mix]:
    """Say which windows a phase has; of a mix with shares the sources are counted, once."""
    exclusion = read_exclusion(settings, storage)
    vocabulary = plan_vocabulary(snapshots)
    if border is not None:
        check_continued(border, settings, vocabulary)
    folder = plan_folder(store, snapshots, settings, exclusion, border.identity() if border is not None else None)
    mix = find_mix(folder, snapshots, settings, vocabulary, exclusion, may_write=may_write)
    check_passes(snapshots, mix.epochs)
    if may_write and exclusion.digest is not None:
        folder.describe()
        exclusion.publish(folder)
    if border is None:
        windows = windows_of(folder.config.digest, snapshots, settings, mix.epochs)
    else:
        shards = shard_table(snapshots, mix, border)
        passes = passes_of(snapshots, mix.epochs)
        windows = prepare_windows(folder, border, shards, passes, settings, write=may_write)
    work = StageWork(
        title=f"plan {settings.phase}",
        folders=(folder,),
        units=[Unit(inputs=window.inputs, payload={"window": window}) for window in windows],
        make_worker=partial(PlanWorker, settings, vocabulary.spec, border.reference() if border is not None else None),
        parents=_parents(snapshots, border),
    )
    return work, mix


def _parents(snapshots: Sequence[Snapshot], border: Border | None) -> dict[str, str]:
    parents = {f"{snapshot.folder.config.stage}/{snapshot.folder.source}": snapshot.digest for snapshot in snapshots}
    return parents | ({"continues": border.plan.description["snapshot"]} if border is not None else {})


class PlanWorker:
    """Plans one window after the other."""

    def __init__(
        self, settings: PlanSettings, vocabulary: Mapping[str, Any], border: BorderReference | None = None
    ) -> None:
        self._settings, self._vocabulary, self._border = settings, build_vocabulary(vocabulary), border
        self._carrying: Carrying | None = None

    def close(self) -> None:
        pass

    def __call__(self, job: Job) -> JobResult:
        started = time.perf_counter()
        from tokenmill.pipelines.plan_continue_documents import open_carrying
        from tokenmill.pipelines.plan_window import plan_window  # brings numba

        (target,) = job.targets
        window: Window = job.unit.payload["window"]
        fault_point("commit:before-data")
        if self._border is not None and self._carrying is None:
            self._carrying = open_carrying(target.folder, self._border, self._settings, self._vocabulary)
        planned = plan_window(target.folder, window, self._settings, self._vocabulary, self._carrying)
        planned_s = time.perf_counter() - started
        commit = commit_window(target.folder, window, planned)
        return JobResult(
            commits=(commit,), seconds={"pack": planned_s, "write": time.perf_counter() - started - planned_s}
        )


def _told_dropped(plan: Snapshot) -> str:
    counts = plan.counts
    lost = ", ".join(f"{reason} {number:,}" for reason, number in sorted({**counts.dropped, **counts.failed}.items()))
    return lost or "its sources have no sample, or plan.mix takes nothing of them"


def finish_plan(
    plan: Snapshot, mix: Mix, snapshots: Sequence[Snapshot], settings: PlanSettings, border: Border | None = None
) -> Plan:
    """Publish the plan's description, once all windows are there."""
    if plan.counts.out == 0:
        raise RecipeError(
            f"plan: no document is left for phase {settings.phase} ({_told_dropped(plan)}); "
            "see plan.mix, plan.templates, plan.context and plan.held_out"
            + (f", or add data: nothing remains of {border.plan.folder.path}" if border is not None else "")
        )
    folder = plan.folder
    if not folder.store.exists(folder.at("plan.json")):
        describe_plan(plan, snapshots, settings, mix, border)
    return open_plan(folder.store, folder.path)
