"""A stage without samples: units, records and a runner that only commits, for tests of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.records import Commit, Counts, FileEntry, InputRef
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit
from tokenmill.pipelines.runner import run_stage

CONFIG = StageConfig(stage="score", version=3, schema=1, settings={"when": "width_px > 3"}, fingerprints={"a": "f0"})


def folder_at(place: Path | str, store: Store | None = None) -> StageDir:
    """Return the stage's folder in a store."""
    return StageDir(store=store or open_store(str(place)), source="phötos", config=CONFIG)


def units_of(number: int) -> list[Unit]:
    """Return so many units, each a range of a shard."""
    found = []
    for n in range(number):
        rows: dict[str, Any] = {"start": n, "end": n + 20, "unit_of_range": "rows"} if n else {}
        found.append(Unit(inputs=(InputRef(name=f"shards/{n:05d}.tar", digest=sha256_hex(str(n).encode()), **rows),)))
    return found


def commit_of(folder: StageDir, wanted: Unit, attempt: int = 0, **changes: Any) -> Commit:
    """Return a unit's record, with counts, files and totals that differ from unit to unit."""
    n = wanted.inputs[0].start or 0
    small = {"small": 1 + n} if n % 2 else {"dark": 0, "small": 1 + n}
    value: dict[str, Any] = {
        "stage": folder.config.stage,
        "source": "photos",
        "config": folder.config.digest,
        "unit": wanted.name,
        "inputs": wanted.inputs,
        "attempt": attempt,
        "predecessor": "00" * 32 if attempt else None,
        "counts": Counts(rows_in=10 + n, kept=7, out=8, dropped=small, failed={"truncated": 2}),
        "files": (
            FileEntry(name=f"x{n}.parquet", role="rows", bytes=99 + n, sha256="ef" * 32),
            FileEntry(name=f"x{n}.tar", role="data", bytes=n, sha256="ed" * 32),
        ),
        "digests": {"values": "11" * 32},
        "totals": {"bytes": 4096 + n, **({"clips": n} if n % 3 == 0 else {})},
    }
    return Commit(**(value | changes))


class OnlyCommits:
    """Commits whatever it is given; of every second unit some samples fail at first."""

    def __call__(self, job: Job) -> JobResult:
        found = []
        for target in job.targets:
            n = job.unit.inputs[0].start or 0
            failed = {"truncated": 2} if n % 2 and not target.attempt else {}
            counts = Counts(rows_in=9, kept=9 - sum(failed.values()), out=7, failed=failed)
            changes = {"counts": counts, "predecessor": target.predecessor}
            found.append(target.folder.publish_commit(commit_of(target.folder, job.unit, target.attempt, **changes)))
        return JobResult(commits=tuple(found))

    def close(self) -> None:
        pass


def run(folder: StageDir, units: Sequence[Unit], **options: Any) -> Snapshot:
    """Bring the stage up to date."""
    work = StageWork(title="stage", folders=(folder,), units=units, make_worker=OnlyCommits)
    ((snapshot,),) = run_stage("stage", [work], RunOptions(quiet=True, **options))
    return snapshot
