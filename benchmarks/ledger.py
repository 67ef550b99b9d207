"""What does it cost to resume a stage of very many units, and what would S3 be asked?

    python benchmarks/ledger.py [--units N] [--folder PATH] [--json]

Units have the real names, records and snapshots, and go through the real runner with workers that do nothing. First
the records of all but `LEFT` units are laid out, with the real bytes and the real rollups, but as plain files, without
the temporary file and the two fsyncs of a real run (or the disk is what is measured). Then each step runs in a process
of its own, whose seconds and peak memory are taken: `resume` (the last units are missing), `again` (nothing is),
`read_snapshot`; and `records_alone`, a resume without rollups, for at most 50,000 units. Requests are counted at the
door to the store, a listing as one request per 1,000 names.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.ledger import Ledger
from tokenmill.manifests.records import Commit, Counts, FileEntry, InputRef
from tokenmill.manifests.rollup_writer import RollupWriter
from tokenmill.manifests.rollups import FoundRollups, forget_rollups, rollup_paths
from tokenmill.manifests.snapshots import read_snapshot, snapshot_names
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store, Stored
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit
from tokenmill.pipelines.runner import run_stage

LEFT = 10
MOST_ALONE = 50_000
NAMES_A_PAGE = 1_000


class CountingStore(Store):
    """Counts what an object store would be asked, by kind of request."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.requests: Counter[str] = Counter()

    def files(self, prefix: str = "") -> list[Stored]:
        found = super().files(prefix)
        self.requests["list"] += len(found) // NAMES_A_PAGE + 1
        return found

    def names(self, prefix: str = "", after: str = "") -> Iterator[str]:
        number = 0
        for number, name in enumerate(super().names(prefix, after), 1):  # noqa: B007
            yield name
        self.requests["list"] += number // NAMES_A_PAGE + 1

    def read_bytes(self, path: str) -> bytes:
        self.requests["get"] += 1
        return super().read_bytes(path)

    def exists(self, path: str) -> bool:
        self.requests["head"] += 1
        return super().exists(path)

    def put(self, path: str, data: bytes) -> None:
        self.requests["put"] += 1
        super().put(path, data)

    def put_exclusive(self, path: str, data: bytes) -> bool:
        self.requests["put"] += 1
        return super().put_exclusive(path, data)

    def delete(self, path: str) -> None:
        self.requests["delete"] += 1
        super().delete(path)


class NoWork:
    """Commits a unit as if its files had been written."""

    def __call__(self, job: Job) -> JobResult:
        (target,) = job.targets
        return JobResult(commits=(target.folder.publish_commit(commit_of(target.folder, job.unit)),))

    def close(self) -> None:
        pass


def commit_of(folder: StageDir, unit: Unit) -> Commit:
    """Return the record of a unit of 10,000 samples."""
    name, digest = unit.name, sha256_hex(unit.inputs[0].name.encode())
    return Commit(
        stage=folder.config.stage,
        source=folder.source,
        config=folder.config.digest,
        unit=name,
        inputs=unit.inputs,
        counts=Counts(rows_in=10_000, kept=9_000, out=9_000, dropped={"small": 900}, failed={"truncated": 100}),
        files=(
            FileEntry(name=f"{name}-{digest[:8]}.tar", role="data", bytes=2**28, sha256=digest),
            FileEntry(name=f"{name}-{digest[8:16]}.parquet", role="rows", bytes=2**20, sha256=digest[::-1]),
        ),
        digests={"content": digest},
        totals={"bytes": 2**28, "codes": 40_960_000},
    )


def lay_out(root: str, units: int) -> float:
    """Write the records of a stage and its rollups; returns the seconds that took."""
    started = time.perf_counter()
    (folder,) = work_of(Store(root), 0).folders
    folder.describe()
    place = Path(root) / folder.path / "commits"
    place.mkdir()
    writer = RollupWriter(Ledger(folder), FoundRollups())
    for number in range(units):
        commit = commit_of(folder, _unit(number))
        (place / commit.record_name.rsplit("/", 1)[-1]).write_bytes(commit.to_bytes())
        writer.add(commit)
    writer.finish()
    return time.perf_counter() - started


def work_of(store: Store, units: int) -> StageWork:
    """Describe a stage of so many shards."""
    config = StageConfig(stage="tokenize", version=1, schema=1, settings={"benchmark": "ledger"})
    return StageWork(
        title="ledger",
        folders=(StageDir(store=store, source="shards", config=config),),
        units=[_unit(number) for number in range(units)],
        make_worker=NoWork,
    )


def _unit(number: int) -> Unit:
    name = f"part-{number // 10_000:04d}/{number:08d}.tar"
    return Unit(inputs=(InputRef(name=name, digest=sha256_hex(name.encode())),))


def step(name: str, root: str, units: int) -> dict[str, Any]:
    """Do one step in this process and say what it cost."""
    store = CountingStore(root)
    started = time.perf_counter()
    work = work_of(store, units)
    described_s = time.perf_counter() - started
    (folder,) = work.folders
    if name == "read_snapshot":
        (snapshot,) = (read_snapshot(folder, one) for one in snapshot_names(folder)[:1])
    else:
        ((snapshot,),) = run_stage(name, [work], RunOptions(quiet=True))
    seconds = time.perf_counter() - started
    assert snapshot.counts.out == 9_000 * len(snapshot.commits)
    return {
        "seconds": round(seconds, 2),
        "of_it_describing_units_s": round(described_s, 2),
        "peak_memory_mb": _peak_memory_mb(),
        "units": len(snapshot.commits),
        "digest": snapshot.digest,
        "requests": dict(sorted(store.requests.items())),
    }


def _peak_memory_mb() -> int:
    """Return this process's own peak; `ru_maxrss` would begin with that of the process that started it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return round(int(line.split()[1]) / 1024)


def measure(units: int, root: str) -> dict[str, Any]:
    """Do all steps, each in its own process."""
    laid_out_s = lay_out(root, units - LEFT)
    steps = {name: _in_child(name, root, units) for name in ("resume", "again", "read_snapshot")}
    (folder,) = work_of(Store(root), 1).folders
    rollups = [folder.store.size(path) for path in rollup_paths(folder)]
    if units <= MOST_ALONE:
        forget_rollups(folder)
        steps["records_alone"] = _in_child("records_alone", root, units)
        assert steps["records_alone"]["digest"] == steps["again"]["digest"]
    return {"units": units, "left": LEFT, "laid_out_without_fsync_s": round(laid_out_s, 1), "rollups": len(rollups),
            "rollup_bytes": sum(rollups), "steps": steps}  # fmt: skip


def _in_child(name: str, root: str, units: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--units", str(units), "--folder", root, "--step", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=20_000)
    parser.add_argument("--folder", help="an empty local folder to work in; a temporary one, if absent")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.step:
        print(json.dumps(step(options.step, options.folder, options.units)))
        return
    with tempfile.TemporaryDirectory(prefix="tokenmill-ledger-") as scratch:
        found = measure(options.units, str(Path(options.folder or scratch).absolute()))
        print(json.dumps(found, indent=1) if options.json else _table(found), flush=True)  # removing takes minutes


def _table(found: dict[str, Any]) -> str:
    lines = [f"{found['units']:,} units, {found['rollups']} rollups of {found['rollup_bytes'] / 2**20:.0f} MiB in all"]
    for name, row in found["steps"].items():
        asked = ", ".join(f"{number:,} {kind}" for kind, number in row["requests"].items())
        lines.append(f"  {name:<14} {row['seconds']:>8.1f} s {row['peak_memory_mb']:>6,} MB  {asked}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
