"""A cluster of three nodes: nodes and drivers that die, units that kill their worker or outstay their deadline."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image
from tests import tiny
from tests.harness import Outcome, faults_in, run_alone, start_alone, trusted, wait_for_record
from tests.ray_nodes import RayNodes

from tokenmill.demo.scenes import render, scene
from tokenmill.manifests.storage import Store, open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]
UNITS, WORKERS = 20, 3
HALVES = {"score": {"workers": 1, "cpus": 0.5, "decode": {"workers": 2, "cpus": 0.5}}}
SCORERS = {"resolution": {}, "text_coverage": {"when": "min_side_px >= 48", "longest_side_px": 320}}
FILTER = {"filter.image.scorers": SCORERS, "filter.image.duplicates": None, "filter.image.carry": []}


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with RayNodes(workers=2) as running:
        yield running


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures (half a second of work a unit), ingested; the scores of an undisturbed run inline in `expected`."""
    folder = tmp_path_factory.mktemp("large")
    pictures = folder / "data" / "photos"
    pictures.mkdir(parents=True)
    for number in range(4 * UNITS):
        Image.fromarray(render(scene(number), 320)).save(pictures / f"{number:03d}.png")
    for root, stage in (("ingested", "ingest"), ("expected", "score")):
        if stage == "score":
            shutil.copytree(folder / "ingested", folder / root)
        path = folder / f"{root}.yaml"
        recipe = tiny.write_recipe(path, folder / "data", str(folder / root), FILTER, sources=["photos"])
        run_alone(stage, recipe).check()
    return folder


def _recipe(large: Path, folder: Path, **changes: object) -> tuple[Path, Store]:
    """Write a recipe for the cluster whose root is ingested; returns it and its store."""
    root = Path(shutil.copytree(large / "ingested", folder / "root"))
    everything = {
        **FILTER,
        "execution.executor": "ray",
        "execution.workers": WORKERS,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    path = folder / "recipe.yaml"
    return tiny.write_recipe(path, large / "data", str(root), everything, sources=["photos"]), open_store(str(root))


def _driver(nodes: RayNodes) -> psutil.Process:
    """Return the process that drives the job on this cluster."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        is_driver = "tokenmill.pipelines.job_start" in line and "python" in Path(line[0]).name
        if is_driver and process.environ().get("RAY_ADDRESS") == nodes.address:
            return process
    raise AssertionError("no driver runs")


def _committed(store: Store) -> set[str]:
    """Name the units that every scorer's folder has a record of."""
    found = Counter(
        e.path.rsplit("/", 1)[-1].removesuffix(".0.json") for e in store.files("score") if "/commits/" in e.path
    )
    return {unit for unit, records in found.items() if records == len(SCORERS)}


def _begun(log: Path) -> Counter[str]:
    """Count how often each unit was begun, by any worker."""
    return Counter(line.removeprefix("unit:") for line in log.read_text().split() if line.startswith("unit:"))


def _passed(log: Path, point: str) -> int:
    return log.read_text().split().count(point)


def test_node_and_driver_killed_and_submitted_again_leave_the_files_of_an_undisturbed_run(nodes, large, tmp_path):
    recipe, store = _recipe(large, tmp_path)
    first, again = tmp_path / "first.log", tmp_path / "again.log"
    submit = ("submit", "score", recipe, "--address", nodes.jobs)
    environment = {"RAY_AUTH_MODE": "disabled"}
    with start_alone(*submit, environment={**environment, "TOKENMILL_FAULT_LOG": str(first)}) as process:
        wait_for_record(store, "score", process)
        nodes.kill(0)
        _wait_for_units(store, UNITS // 3, process)
        driver = _driver(nodes)
        driver.kill()
        text, _ = process.communicate(timeout=120)
        assert process.returncode != 0, text
    _wait_until_still(store)
    committed = _committed(store)
    assert 0 < len(committed) < UNITS, "the driver died too late to prove anything"
    assert faults_in(store) == []

    run_alone(*submit, environment={**environment, "TOKENMILL_FAULT_LOG": str(again)}).check()

    assert faults_in(store) == []
    expected = trusted(open_store(str(large / "expected")))
    assert trusted(store) == expected
    assert not committed & _begun(again).keys(), "what is committed is never done again"
    assert set(_begun(again).values()) == {1}
    assert [unit for unit, times in _begun(first).items() if times > 1][1:] == [], "the node's worker had one in hand"
    assert len(_begun(first).keys() & _begun(again).keys()) <= WORKERS, "each worker had one when the driver died"


def _units(store: Store) -> int:
    return sum("/commits/" in entry.path for entry in store.files("score")) // len(SCORERS)


def _wait_until_still(store: Store) -> None:
    """Wait until the workers of a dead driver are gone: nothing is written for two seconds."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 2:
        if (now := len(store.files("score"))) != last:
            last, since = now, time.monotonic()
        time.sleep(0.1)


def _wait_for_units(store: Store, count: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        if _units(store) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"the run ended (exit code {process.returncode}) with {_units(store)} units")


def _score(recipe: Path, nodes: RayNodes, environment: dict[str, str] | None = None) -> Outcome:
    """Score with a driver of our own on the cluster."""
    return run_alone("score", recipe, f"execution.address={nodes.address}", environment=environment)


def _some_unit(large: Path) -> str:
    commits = sorted((large / "expected" / "score").glob("*/*/commits/*.json"))
    return commits[len(commits) // 2].name.removesuffix(".0.json")


@pytest.mark.parametrize(("where", "pools"), [("unit", {}), ("model", HALVES)])
def test_unit_that_kills_its_worker_every_time_fails_alone_and_is_done_when_it_is_cured(
    where, pools, nodes, large, tmp_path
):
    recipe, store = _recipe(large, tmp_path, execution__pools=pools)
    poison = _some_unit(large)

    outcome = _score(recipe, nodes, {"TOKENMILL_FAULT": f"{where}:{poison}:1"})

    assert outcome.code == 1
    assert f"1 units failed after 3 tries: {poison} (its worker died" in outcome.text
    assert _units(store) == UNITS - 1
    (failure,) = (tmp_path / "root").glob(f"score/*/*/failures/{poison}.json")
    assert json.loads(failure.read_text())["tries"] == 3
    _score(recipe, nodes).check()
    assert not failure.exists()
    assert trusted(store) == trusted(open_store(str(large / "expected")))


@pytest.mark.parametrize(("where", "action", "pools"), [("unit", "hang", {}), ("model", "freeze", HALVES)])
def test_unit_past_its_deadline_is_handed_out_again_and_two_operators_leave_the_files_of_one(
    where, action, pools, nodes, large, tmp_path
):
    recipe, store = _recipe(large, tmp_path, execution__unit_timeout_s=6, execution__pools=pools)
    environment = {
        "TOKENMILL_FAULT": f"{where}:{_some_unit(large)}:1",
        "TOKENMILL_FAULT_ONCE": str(tmp_path / "once"),
        "TOKENMILL_FAULT_ACTION": action,
    }
    outcome = _score(recipe, nodes, environment)
    outcome.check()
    assert (tmp_path / "once").exists()
    assert "its worker died or was stopped" in outcome.text
    assert trusted(store) == trusted(open_store(str(large / "expected")))


def test_sigterm_commits_what_is_in_flight_and_a_resume_does_nothing_twice(nodes, large, tmp_path):
    recipe, store = _recipe(large, tmp_path)
    environment = {"TOKENMILL_FAULT_LOG": str(tmp_path / "points.log")}
    command = ("score", recipe, f"execution.address={nodes.address}")
    with start_alone(*command, environment=environment) as process:
        wait_for_record(store, "score", process)
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "run it again to resume" in text
    assert 0 < _units(store) < UNITS
    run_alone(*command, environment=environment).check()
    assert _passed(tmp_path / "points.log", "commit:before-data") == UNITS * len(SCORERS)
    assert trusted(store) == trusted(open_store(str(large / "expected")))


# The decoders of the second case have to begin in time themselves, on a busy machine too.
@pytest.mark.parametrize(("decode", "start_s"), [({}, 5), ({"decode": {"workers": 1, "cpus": 0.5}}, 25)])
def test_pool_that_no_node_can_hold_ends_with_what_it_wants_and_what_there_is(decode, start_s, nodes, large, tmp_path):
    pools = {"score": {"workers": 1, "gpus": 1, **decode}}
    recipe, _ = _recipe(large, tmp_path, execution__pools=pools, execution__start_timeout_s=start_s)
    outcome = _score(recipe, nodes)
    assert outcome.code == 1
    assert f"no worker began within {start_s} s" in outcome.text and "num_gpus 1" in outcome.text
