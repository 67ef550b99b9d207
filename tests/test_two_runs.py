"""Two runs of the same stage at once on one root, one of them with other libraries: both end well, with one result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
from tests import tiny
from tests.harness import faults_in, trusted

from tokenmill.manifests.records import Counts, InputRef
from tokenmill.manifests.stagedir import StageConfig, StageDir, stage_dir_at
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.jobs import Job, Target, Unit, UnitOutput, publish

# Colourfulness a little higher, as another release of a library might have it, and units slow enough to meet.
_RUN = """
import sys, time
from pathlib import Path
from tokenmill import cli
from tokenmill.filters.colourfulness import Colourfulness
from tokenmill.pipelines import runner
from tokenmill.pipelines.score_worker import ScoreWorker
shift, score, complete, carry_out = float(sys.argv[1]), Colourfulness.score, ScoreWorker.complete, runner.carry_out

def shifted(self, batch):
    columns = score(self, batch)
    return {**columns, "colourfulness": [value + shift for value in columns["colourfulness"]]}

def slowly(self, job, parts):
    time.sleep(0.2)
    return complete(self, job, parts)

here, there = (Path(sys.argv[2] + f".{name}") for name in (("a", "b") if shift else ("b", "a")))

def from_the_other_end(title, works, jobs, *rest):
    here.touch()
    while not there.exists():  # both have seen by now that everything is missing
        time.sleep(0.01)
    return carry_out(title, works, jobs[::-1] if shift else jobs, *rest)

Colourfulness.score, ScoreWorker.complete, runner.carry_out = shifted, slowly, from_the_other_end
sys.exit(cli.main(["run", sys.argv[2], "--until", "plan", "--json"]))
"""


def test_two_runs_at_once_with_other_libraries_end_with_one_result_that_verifies(finished, tmp_path):
    root = finished.copy(tmp_path / "root")
    store = open_store(str(root))
    for entry in store.files():
        if entry.path.split("/")[0] not in ("ingest", "split"):
            store.delete(entry.path)
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", finished.data, str(root), sources=["scenes"])
    runs = [_start(0.0, recipe), _start(0.25, recipe)]
    found = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], found
    digests = [_snapshots(text) for text, _ in found]
    assert digests[0] == digests[1]
    assert faults_in(store) == []
    assert _winners(store, open_store(str(finished.root))) == {"shifted", "plain"}, "one run did all: they never met"
    before = trusted(store)
    again = _start(0.0, recipe)
    text, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and _snapshots(text) == digests[0]
    assert trusted(store) == before


def _start(shift: float, recipe: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _RUN, str(shift), str(recipe)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def _snapshots(text: str) -> dict[str, str]:
    return {path: digest for row in json.loads(text)["stages"] for path, digest in row["snapshots"].items()}


def _winners(store: Store, plain: Store) -> set[str]:
    """Say whose records stand: the run's with the shift, the other's, or both."""
    found = set()
    for entry in plain.files("score/scenes"):
        if not entry.path.endswith("/config.json"):
            continue
        there = stage_dir_at(plain, entry.path.rpartition("/")[0])
        if there.config.settings["scorer"] == "colourfulness":
            here = stage_dir_at(store, there.path)
            for unit in there.record_names():
                found.add("plain" if here.read_commit(unit, 0).files == there.read_commit(unit, 0).files else "shifted")
    return found


def test_publishing_a_unit_that_another_run_has_published_returns_the_other_ones_record(tmp_path):
    folder = StageDir(
        store=open_store(str(tmp_path)), source="s", config=StageConfig(stage="score", version=1, schema=1)
    )
    job = Job(unit=Unit(inputs=(InputRef(name="a.tar", digest="0" * 64),)), targets=(Target(folder=folder),))
    folder.describe()
    counts = Counts(rows_in=1, kept=1, out=1)
    first = publish(job, job.targets[0], UnitOutput(rows=pl.DataFrame({"key": ["a"], "v": [1.0]}), counts=counts))
    second = publish(job, job.targets[0], UnitOutput(rows=pl.DataFrame({"key": ["a"], "v": [1.5]}), counts=counts))
    assert second == first == folder.read_commit(job.unit.name, 0)
    assert folder.read_rows(second)["v"].to_list() == [1.0]
    assert faults_in(folder.store) == []
