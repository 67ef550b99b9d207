"""How long does it take from index files to a written plan, and how much memory? A part of `benchmarks/plan.py`.

Writes the index files of a made-up source (`token_indexes.py`), which is no part of the time and is kept in the folder
for the next run; then, in a process of its own with both cores, plans it into packs of 5,120 ids and writes the plan.
`resident_bytes_per_document` is what that process grew by at its peak since it had everything imported and compiled.
`cpu_us_per_document` are the steps of planning one shard, without threads beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from made.peak_memory import peak_bytes
from made.token_indexes import SOURCE, VOCABULARY, token_folder, write_indexes

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.named_tables import open_named_table
from tokenmill.manifests.records import Counts
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import table_bytes
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.execution_threads import available_cpus
from tokenmill.pipelines.packing import pack
from tokenmill.pipelines.plan import plan_vocabulary, run_plans, write_plan
from tokenmill.pipelines.plan_documents import draw_pass
from tokenmill.pipelines.plan_tables import window_tables
from tokenmill.pipelines.plan_windows import windows_of
from tokenmill.settings_train import PlanSettings

CONTEXT = 5_120


def measure(documents: int, files: int, folder: Path) -> dict[str, Any]:
    """Write `files` indexes of `documents` rows in all below a folder, unless they are there, and plan them."""
    root = folder / f"{documents}-{files}"
    if not (root / "written").exists():
        write_indexes(root, documents, files, available_cpus())
        (root / "written").touch()
    subprocess.run(["rm", "-rf", str(root / "plans")], check=True)
    os.sync()  # what was written must not be paid for by the plan
    command = [sys.executable, sys.argv[0], "--planned", str(root), "--files", str(files)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {"documents": documents, "files": files, **json.loads(answer)}


def planned(root: Path, files: int) -> dict[str, Any]:
    """Plan what lies below a root, in this process."""
    with tempfile.TemporaryDirectory() as warm:  # imports and compiles
        store = open_store(warm)
        write_plan(store, [write_token_source(store, SOURCE, VOCABULARY, Amounts(images=9, texts=9))], _settings())
    folder = token_folder(root)
    commits = tuple(folder.read_commit(unit, 0) for unit in folder.record_names())
    assert len(commits) == files
    snapshot = Snapshot(folder=folder, commits=commits)
    before, cpu_before, started = peak_bytes(), time.process_time(), time.perf_counter()
    options = RunOptions(threads=available_cpus(), cores=available_cpus(), quiet=True)
    (plan,) = run_plans(folder.store, [snapshot], [_settings()], options)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_before
    totals = plan.description["totals"]
    written = sum(path.stat().st_size for path in Path(root, plan.folder.path).rglob("*") if path.is_file())
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "resident_bytes_per_document": (peak_bytes() - before) / totals["documents"],
        "peak_bytes": peak_bytes(),
        "plan_bytes_per_document": written / totals["documents"],
        "packs": totals["packs"],
        "windows": plan.description["num_windows"],
        "fill": plan.description["fill"],
        "cpu_us_per_document": _phases(snapshot, folder.store),
    }


def _settings() -> PlanSettings:
    return PlanSettings(context=CONTEXT)


def _phases(snapshot: Snapshot, store: Store) -> dict[str, float]:
    """Plan one shard alone, step by step: CPU microseconds a document."""
    settings, vocabulary = _settings(), plan_vocabulary([snapshot])
    shard = windows_of("phases", [snapshot], settings)[0].shards[0]
    clock = [time.process_time()]
    index = open_named_table(store, shard.index)
    clock.append(time.process_time())
    drawn, _, _ = draw_pass(index, shard, settings, vocabulary)
    clock.append(time.process_time())
    packs = pack(drawn.length, drawn.cuttable, settings.context, settings.min_piece)
    clock.append(time.process_time())
    counts = Counts(rows_in=len(drawn), kept=len(drawn), out=len(packs))
    planned = window_tables(packs, drawn, [shard], [], counts, settings)
    clock.append(time.process_time())
    data = [table_bytes(table, 1) for table in (planned.documents, planned.packs)]
    clock.append(time.process_time())
    for one in data:
        sha256_hex(one)
    clock.append(time.process_time())
    names = ("read", "draw", "pack", "tables", "parquet", "sha256")
    return {name: round(1e6 * float(s) / len(drawn), 3) for name, s in zip(names, np.diff(clock), strict=True)}
