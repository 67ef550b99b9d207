"""How long does a changed threshold take on ten million scored samples?

    python benchmarks/select.py [--shards N] [--rows N] [--folder PATH] [--json]

Lays out what a scored run would have left: two sources, an index and the tables of six scorers for every shard, with
the real names, records, rollups and snapshots, written by the real runner with scorers that make their values up. That
is kept in `--folder` and resumed there; it is no part of the time. Then, each in a process of its own: `select` (the
first selection), `threshold` (one rule changed: everything is selected again and published), `one_source` (one rule
changed for one source), `again` (nothing changed), and `bare`, a loop of polars alone over the same score tables with
the same expressions that writes the same verdicts, without records, digests, checks or sync.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs

from tokenmill.filters import scorer as scorers
from tokenmill.filters.scorer import Columns, fingerprint
from tokenmill.manifests.identity import rows_digest, sha256_hex
from tokenmill.manifests.records import Counts
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.ingest import ingest_work, table_output
from tokenmill.pipelines.jobs import Job, JobResult, UnitOutput, publish
from tokenmill.pipelines.runner import run_stage
from tokenmill.pipelines.samples import FAILURE_COLUMNS
from tokenmill.pipelines.score import score_work
from tokenmill.pipelines.sources.source import INDEX_COLUMNS
from tokenmill.recipe import Recipe, check_recipe

SCORERS: dict[str, dict[str, Any]] = {
    "size": {"width_px": pl.Int32(), "height_px": pl.Int32(), "min_side_px": pl.Int32(), "aspect": pl.Float32()},
    "beauty": {"aesthetic": pl.Float32()},
    "colour": {"colourfulness": pl.Float32(), "is_monochrome": pl.Boolean()},
    "text": {"text_coverage": pl.Float32(), "text_boxes": pl.Int32()},
    "focus": {"sharpness": pl.Float32(), "entropy_bits": pl.Float32()},
    "safety": {"nsfw": pl.Float32(), "watermark": pl.Float32()},
}
RULES: dict[str, Any] = {
    "resolution": "min_side_px >= 512",
    "aspect": "aspect BETWEEN 0.2 AND 5",
    "safe": "nsfw < 0.9 AND watermark < 0.95",
    "sharp": "sharpness >= 20 OR entropy_bits >= 7",
    "text": "text_coverage < 0.3 OR text_boxes < 8",
    "aesthetic": {"keep": "aesthetic >= 5.5", "rescue": "NOT is_monochrome AND text_coverage < 0.05"},
}
SOURCES = {"crawled": 0.6, "licensed": 0.4}  # shares of the shards
STEPS = {"select": {}, "threshold": {"filter.image.rules.sharp": "sharpness >= 25 OR entropy_bits >= 7"},
         "one_source": {"filter.image.sources.licensed.rules": {"sharp": "sharpness >= 30 OR entropy_bits >= 7"}},
         "again": {}, "bare": {}}  # fmt: skip
RANGES = {"width_px": (200, 4000), "height_px": (200, 4000), "min_side_px": (400, 3000), "aspect": (0.3, 3),
          "aesthetic": (3, 8), "colourfulness": (0, 100), "text_coverage": (0, 0.4), "text_boxes": (0, 20),
          "sharpness": (0, 400), "entropy_bits": (3, 8), "nsfw": (0, 1), "watermark": (0, 1)}  # fmt: skip


class NoModel:
    """A scorer by name only: its values were made up, and it refuses to be run."""

    version, takes, batch_size, calls = 1, "image", 32, 0

    def __init__(self, kind: str) -> None:
        self.name, self.columns, self.fingerprint = kind, SCORERS[kind], fingerprint(kind, 1, {})

    def score(self, batch: Sequence[Any]) -> Columns:
        NoModel.calls += 1
        raise AssertionError("selection must not score")


def _install() -> None:
    for kind in SCORERS:
        setattr(sys.modules[__name__], f"make_{kind}", partial(NoModel, kind))
        scorers.BUILT_IN[kind] = f"{__name__}:make_{kind}"


def recipe(folder: Path, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe of the run, some settings changed."""
    value: dict[str, Any] = {
        "root": str(folder / "root"),
        "execution": {"executor": "inline"},
        "sources": {name: {"kind": "webdataset", "url": str(folder / "raw" / name)} for name in SOURCES},
        "filter": {"image": {"scorers": {kind: {} for kind in SCORERS}, "rules": dict(RULES), "carry": ["aesthetic"]}},
    }
    for path, change in changes.items():
        place = value
        *parents, last = path.split(".")
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = change
    return check_recipe(value, "benchmark")


def chain_of(folder: Path, work: Iterable[str], changes: Mapping[str, Any] | None = None) -> Chain:
    return Chain(recipe=recipe(folder, changes or {}), options=ChainOptions(work=frozenset(work), quiet=True))


def lay_out(folder: Path, shards: int, rows: int) -> float:
    """Leave raw shards, indexes and scores in a folder, unless they are there; returns the seconds that took."""
    started = time.perf_counter()
    first = 0
    for name, share in SOURCES.items():
        number = round(shards * share)
        _raw(folder / "raw" / name, range(first, first + number))
        first += number
    chain = chain_of(folder, ())
    quick = RunOptions(quiet=True)
    indexes = [
        replace(
            ingest_work(chain.store, name, chain._settings(name), unit_bytes=chain.recipe.execution.unit_bytes),
            make_worker=partial(MadeUp, rows),
        )
        for name in SOURCES
    ]
    run_stage("ingest", indexes, quick)
    scores = [
        replace(
            score_work(chain.store, chain.passes["image"], chain.pieces[name], chain.limits, {}),
            make_worker=partial(MadeUp, rows),
        )
        for name in SOURCES
    ]
    run_stage("score", scores, quick)
    return time.perf_counter() - started


def _raw(folder: Path, numbers: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = folder / f"{number:05d}.tar"
        if not path.exists():
            path.write_bytes(sha256_hex(str(number).encode()).encode())


class MadeUp:
    """Publishes an index, or the tables of all scorers, with values made from the unit's name."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def close(self) -> None:
        pass

    def __call__(self, job: Job) -> JobResult:
        first = int(job.unit.inputs[0].name[:5]) * self._rows
        keys = [f"{number:09d}" for number in range(first, first + self._rows)]
        draw = np.random.default_rng(first)
        if job.targets[0].folder.config.stage == "ingest":
            return JobResult(commits=(publish(job, job.targets[0], _index(job.unit.inputs[0].name, keys, draw)),))
        return JobResult(commits=tuple(publish(job, t, _scores(t.folder.config.settings, keys, draw))
                                       for t in job.targets))  # fmt: skip


def _index(path: str, keys: list[str], draw: np.random.Generator) -> UnitOutput:
    digests = draw.bytes(32 * len(keys)).hex()
    frame = pl.DataFrame({"key": keys}).with_columns(
        pl.lit(path).alias("path"), pl.lit(False).alias("packed"),
        pl.Series("offset", np.arange(len(keys)) * 90_112), pl.lit(88_000, dtype=pl.Int64).alias("length"),
        pl.lit("jpg").alias("extension"),
        pl.Series("sha256", [digests[64 * n : 64 * n + 64] for n in range(len(keys))]),
        ("a picture of thing " + pl.col("key")).alias("caption"),
        ('{"url": "https://example.org/' + pl.col("key") + '.jpg"}').alias("metadata"),
        *(pl.lit(None, dtype=kind).alias(name) for name, kind in FAILURE_COLUMNS.items()),
    )  # fmt: skip
    return table_output(frame.select(INDEX_COLUMNS.keys()))


def _scores(settings: Mapping[str, Any], keys: list[str], draw: np.random.Generator) -> UnitOutput:
    columns = {}
    for name, kind in SCORERS[settings["scorer"]].items():
        low, high = RANGES.get(name, (0, 2))
        values = draw.uniform(low, high, len(keys)) if kind.is_float() else draw.integers(low, high, len(keys))
        columns[name] = pl.Series(values).cast(kind)
    broken = pl.Series(np.arange(len(keys)) % 1000 == 7)  # the same in every table, as when decoding fails
    frame = pl.DataFrame({"key": keys, **columns}).with_columns(
        *(pl.when(~broken).then(pl.col(name)).alias(name) for name in columns),
        *(pl.when(broken).then(pl.lit(value, dtype=FAILURE_COLUMNS[name])).alias(name)
          for name, value in zip(FAILURE_COLUMNS, ("score", "truncated", "the file ends early", False), strict=True)),
    )  # fmt: skip
    failed = int(broken.sum())
    kept = len(keys) - failed
    counts = Counts(rows_in=len(keys), kept=kept, out=kept, failed={"truncated": failed})
    return UnitOutput(rows=frame, counts=counts, digests={"values": rows_digest(frame)})


def step(name: str, folder: Path) -> dict[str, Any]:
    """Do one step in this process and say what it cost."""
    if name == "bare":
        return bare(folder)
    before = {str(path) for path in (folder / "root" / "select").rglob("commits/*.json")}
    started, cpu = time.perf_counter(), time.process_time()
    chain = chain_of(folder, ("takedown", "duplicates", "select"), STEPS[name])
    snapshots = chain.select
    seconds = time.perf_counter() - started
    counts = [snapshot.counts for snapshot in snapshots.values()]
    written = {str(path) for path in (folder / "root" / "select").rglob("commits/*.json")} - before
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_memory_mb": _peak_memory_mb(),
        "rows": sum(one.rows_in for one in counts),
        "kept": sum(one.kept for one in counts),
        "units_written": len(written),
        "model_calls": NoModel.calls,
        "digests": {source: snapshot.digest[:16] for source, snapshot in snapshots.items()},
    }


def bare(folder: Path) -> dict[str, Any]:
    """Do what a loop of polars alone does: scan, the same expressions, write."""
    chain = chain_of(folder, ())
    root = folder / "root"
    parts = [[str(root / d.at(c.rows.name)) for d, c in part.scores]
             for name in SOURCES for part in chain.scored[name]]  # fmt: skip
    rules = chain.rules["image"]
    kept = 0
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        started, cpu = time.perf_counter(), time.process_time()
        for number, paths in enumerate(parts):
            first, *rest = (pl.scan_parquet(path) for path in paths)
            rest = [table.drop("key", *FAILURE_COLUMNS) for table in rest]
            table = pl.concat([first, *rest], how="horizontal")
            judged = [verdict.alias(f"rule:{name}") for name, verdict in zip(rules.texts, rules.judging(), strict=True)]
            verdict = table.with_columns(cs.float().fill_nan(None)).select("key", "fail_reason", "aesthetic", *judged)
            verdict = verdict.with_columns(pl.coalesce("^rule:.*$").alias("drop_reason")).drop(cs.starts_with("rule:"))
            verdict = verdict.with_columns(
                (pl.col("drop_reason").is_null() & pl.col("fail_reason").is_null()).alias("keep")
            )
            found = verdict.collect()
            found.write_parquet(f"{scratch}/{number:05d}.parquet")
            kept += int(found["keep"].sum())
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    memory = {"peak_memory_mb": _peak_memory_mb()}
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), **memory, "kept": kept}


def _peak_memory_mb() -> int:
    """Return this process's own peak; `ru_maxrss` would begin with that of the process that started it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return round(int(line.split()[1]) / 1024)


def measure(folder: Path, shards: int, rows: int) -> dict[str, Any]:
    """Lay out, then do all steps, each in its own process."""
    laid_out_s = lay_out(folder, shards, rows)
    shutil.rmtree(folder / "root" / "select", ignore_errors=True)  # of an earlier run
    steps = {name: _in_child(name, folder) for name in STEPS}
    assert steps["select"]["kept"] == steps["bare"]["kept"]
    return {"shards": shards, "rows": shards * rows, "rules": len(RULES), "scorers": len(SCORERS),
            "cores": len(os.sched_getaffinity(0)), "laid_out_s": round(laid_out_s, 1), "steps": steps,
            "ratio_to_bare": round(steps["threshold"]["seconds"] / steps["bare"]["seconds"], 2)}  # fmt: skip


def _in_child(name: str, folder: Path) -> dict[str, Any]:
    script = str(Path(__file__).with_name("select.py"))
    command = [sys.executable, script, "--folder", str(folder), "--step", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--rows", type=int, default=10_000, help="of a shard")
    parser.add_argument("--folder", type=Path, help="where the laid-out run is kept; a temporary one, if absent")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    _install()
    if options.step:
        print(json.dumps(step(options.step, options.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="tokenmill-select-") as scratch:
        found = measure((options.folder or Path(scratch)).absolute(), options.shards, options.rows)
        print(json.dumps(found, indent=1) if options.json else _table(found), flush=True)


def _table(found: Mapping[str, Any]) -> str:
    size = f"{found['rows']:,} rows in {found['shards']:,} shards, {found['rules']} rules, {found['scorers']} scorers"
    lines = [f"{size}, {found['cores']} cores; a new threshold takes {found['ratio_to_bare']} x the bare loop"]
    for name, row in found["steps"].items():
        took = f"{row['seconds']:>8.2f} s {row['cpu_seconds']:>8.2f} CPU-s {row['peak_memory_mb']:>6,} MB"
        lines.append(f"  {name:<11} {took}  kept {row['kept']:,}")
    return "\n".join(lines)
