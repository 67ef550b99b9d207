"""A run's figures: rows in the stage's folder, a Prometheus endpoint over real HTTP, the aim on the last line."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import polars as pl
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tokenmill.errors import RunError, StorageError
from tokenmill.manifests.records import Commit, Counts, InputRef
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines import metrics as module
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.execution import Finished, cpu_seconds
from tokenmill.pipelines.jobs import Job, JobResult, StageWork, Unit, UnitOutput, publish
from tokenmill.pipelines.metrics import StageMetrics
from tokenmill.pipelines.progress import efficiency
from tokenmill.pipelines.runner import run_stage


def _folder(store: Store, source: str = "scenes") -> StageDir:
    return StageDir(store=store, source=source, config=StageConfig(stage="score", version=1, schema=1))


def _finished(index: int = 0) -> Finished:
    counts = Counts(rows_in=10, kept=7, out=7, dropped={"small": 2}, failed={"truncated": 1})
    commit = Commit(
        stage="score", source="scenes", config="0" * 64, unit=f"unit-{index}", inputs=(), counts=counts, files=()
    )
    return Finished(
        index=index,
        result=JobResult(commits=(commit,), seconds={"decode": 2.0, "write": 0.5}),
        wall_s=2.5,
        cpu_s=2.0,
        traffic={"requests": 4, "retries": 1, "bytes_read": 1000, "bytes_written": 50},
        worker="host:1",
        started=1_000.0,
    )


def _rows(root: Path) -> Iterator[Mapping[str, object]]:
    for path in sorted(root.rglob("logs/*.jsonl")):
        yield from map(json.loads, path.read_text().splitlines())


def _get(port: int | None) -> dict[tuple[str, ...], float]:
    """Scrape the endpoint as Prometheus does: (name, labels but the stage) → value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "stage")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_log_has_a_row_a_unit_and_a_lost_try_and_the_run(tmp_path):
    folders = {name: _folder(open_store(str(tmp_path)), name) for name in ("scenes", "photos")}
    with StageMetrics("score", total=5, done=2, workers=2, port=None, folders=folders) as metrics:
        metrics.lost("unit-0", "scenes", "its worker died", 1)
        metrics.finished("unit-0", "scenes", _finished(), try_number=2)
        metrics.finished("unit-1", "photos", _finished(1))
    rows = list(_rows(tmp_path / "score" / "scenes"))
    assert [row["kind"] for row in rows] == ["lost", "unit", "run"]
    lost, unit, run = rows
    assert (lost["unit"], lost["try"], lost["why"]) == ("unit-0", 1, "its worker died")
    assert (unit["rows_in"], unit["rows_kept"], unit["rows_dropped"], unit["rows_failed"]) == (10, 7, 2, 1)
    assert (unit["worker"], unit["try"], unit["started"], unit["phases_s"]) == (
        "host:1", 2, 1000.0, {"decode": 2.0, "write": 0.5},
    )  # fmt: skip
    assert (unit["requests"], unit["retries"], unit["bytes_read"], unit["bytes_written"]) == (4, 1, 1000, 50)
    assert (run["units"], run["units_total"], run["tries_lost"], run["rows_in"], run["ended"]) == (2, 5, 1, 20, "well")


def test_log_of_an_interrupted_run_is_there_and_says_so(tmp_path):
    folders = {"scenes": _folder(open_store(str(tmp_path)))}
    with pytest.raises(KeyboardInterrupt), StageMetrics("score", total=2, done=0, workers=1, port=None,
                                                        folders=folders) as metrics:  # fmt: skip
        metrics.finished("unit-0", "scenes", _finished())
        raise KeyboardInterrupt
    assert [row.get("ended") for row in _rows(tmp_path)] == [None, "KeyboardInterrupt"]


def test_long_log_is_written_in_parts_that_hold_every_row_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PART_BYTES", 2000)
    monkeypatch.setattr(module, "_PUBLISH_EVERY_S", 0.0)  # as if every unit took a minute
    with StageMetrics("score", total=20, done=0, workers=1, port=None,
                      folders={"scenes": _folder(open_store(str(tmp_path)))}) as metrics:  # fmt: skip
        for index in range(20):
            metrics.finished(f"unit-{index}", "scenes", _finished(index))
            assert [row["unit"] for row in _rows(tmp_path)] == [f"unit-{number}" for number in range(index + 1)]
    assert len(list(tmp_path.rglob("logs/*.jsonl"))) > 3


def test_log_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch, caplog):
    def refuse(self, path, data):
        raise StorageError(f"{path}: read-only")

    monkeypatch.setattr(Store, "put", refuse)
    with StageMetrics("score", total=1, done=0, workers=1, port=None,
                      folders={"scenes": _folder(open_store(str(tmp_path)))}) as metrics:  # fmt: skip
        metrics.finished("unit-0", "scenes", _finished())
    assert "read-only" in caplog.text


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_endpoint_tells_how_the_stage_goes_and_closes_with_it():
    with StageMetrics("score", total=4, done=1, workers=3, port=0) as metrics:
        first = _get(metrics.port)
        assert first["tokenmill_units_remaining",] == 3
        metrics.lost("unit-0", "scenes", "its worker died", 1)
        metrics.finished("unit-0", "scenes", _finished())
        found = _get(metrics.port)
    assert found["tokenmill_units_total", "scenes", "done"] == 1
    assert found["tokenmill_units_total", "scenes", "lost"] == 1
    assert found["tokenmill_rows_total", "scenes", "kept"] == 7
    assert found["tokenmill_phase_seconds_total", "decode"] == 2.0
    assert found["tokenmill_bytes_total", "read"] == 1000
    assert found["tokenmill_store_requests_total",] == 4
    assert found["tokenmill_store_retries_total",] == 1
    assert found["tokenmill_units_remaining",] == 2
    assert found["tokenmill_eta_seconds",] > 0
    assert found["tokenmill_workers",] == 3
    with pytest.raises(OSError, match="refused"):
        _get(metrics.port)


class _Scraper:
    """A worker that looks at the endpoint of its own stage before it commits."""

    def __init__(self, port: int, seen: list[dict[tuple[str, ...], float]]) -> None:
        self._port, self._seen = port, seen

    def __call__(self, job: Job) -> JobResult:
        self._seen.append(_get(self._port))
        output = UnitOutput(rows=pl.DataFrame({"key": ["a", "b"]}), counts=Counts(rows_in=2, kept=2, out=2))
        return JobResult(commits=(publish(job, job.targets[0], output),), seconds={"model": 1.0})

    def close(self) -> None:
        pass


def test_endpoint_is_up_while_a_stage_runs_and_its_log_is_in_the_folder(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    seen: list[dict[tuple[str, ...], float]] = []
    units = [Unit(inputs=(InputRef(name=name, digest=name * 64),)) for name in "abc"]
    work = StageWork(
        title="score", folders=(_folder(open_store(str(tmp_path))),), units=units,
        make_worker=partial(_Scraper, port, seen),
    )  # fmt: skip
    run_stage("score", [work], RunOptions(quiet=True, metrics_port=port))
    assert [one.get(("tokenmill_units_total", "scenes", "done"), 0) for one in seen] == [0, 1, 2]
    assert [one["tokenmill_units_remaining",] for one in seen] == [3, 2, 1]
    assert seen[2]["tokenmill_rows_total", "scenes", "kept"] == 4
    assert seen[2]["tokenmill_phase_seconds_total", "model"] == 2
    with pytest.raises(OSError, match="refused"):
        _get(port)
    rows = list(_rows(tmp_path))
    assert [row["kind"] for row in rows] == ["unit", "unit", "unit", "run"]
    assert all(row["wall_s"] > 0 and row["worker"] and row["started"] for row in rows[:3])


def test_endpoint_on_a_port_in_use_says_what_to_do():
    with StageMetrics("score", total=1, done=0, workers=1, port=0) as first:
        second = StageMetrics("score", total=1, done=0, workers=1, port=first.port)
        with pytest.raises(RunError, match=f"metrics_port: cannot listen on port {first.port}"), second:
            pass
    with StageMetrics("score", total=1, done=0, workers=1, port=first.port):  # the port is free again at once
        pass


def test_efficiency_on_cpus_is_against_the_cores_and_with_gpus_against_the_slowest_phase():
    phases = {"decode": 30.0, "model": 60.0}
    on_cpus = efficiency(wall_s=50, cpu_s=90, phases_s=phases, cores=2)
    assert (on_cpus.ideal_s, round(on_cpus.ratio, 2)) == (45, 1.11)
    on_gpus = efficiency(wall_s=33, cpu_s=90, phases_s=phases, cores=16, gpus=1, workers=2)
    assert (on_gpus.ideal_s, on_gpus.ratio) == (30, 1.1)
    assert "model alone" in str(on_gpus)


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_cpu_time_of_a_child_counts_while_it_runs_and_once_when_it_has_ended():
    """A decoder's child outlives the units it works for."""
    busy = "import time, sys\nwhile time.process_time() < 1.1: pass"  # the kernel counts in ticks of 10 ms
    program = f"{busy}\nprint('busy so far', flush=True)\nsys.stdin.read()"
    before = cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert 1 <= cpu_seconds() - before < 1.9
    assert 1 <= cpu_seconds() - before < 1.9
