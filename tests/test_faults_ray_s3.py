"""Killed and resumed = uninterrupted, through Ray (a worker, the driver) and against an S3 server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import tiny
from tests.harness import Commands, Outcome, faults_in, run_alone, trusted

from tokenmill.manifests.storage import open_store

SCORE_AND_BEFORE = ("ingest", "split", "score")


def _before_score(finished, folder: Path) -> Path:
    """Copy a finished root as it was before `score`, with a recipe for Ray beside; returns the recipe."""
    root = finished.copy(folder / "root")
    for path in root.iterdir():
        if path.name not in ("ingest", "split"):
            shutil.rmtree(path)
    return tiny.write_recipe(folder / "recipe.yaml", finished.data, str(root), {"execution.executor": "ray"})


def _expected(finished) -> dict[str, str]:
    whole = trusted(open_store(str(finished.root)))
    return {path: digest for path, digest in whole.items() if path.split("/")[0] in SCORE_AND_BEFORE}


def _score(recipe: Path, workers: int, environment: dict[str, str] | None = None) -> Outcome:
    return run_alone("score", recipe, f"execution.workers={workers}", environment=environment)


@pytest.mark.ray
@pytest.mark.slow
def test_worker_killed_on_ray_is_replaced_and_leaves_the_same_files(finished, tmp_path):
    recipe = _before_score(finished, tmp_path)
    once = tmp_path / "died"
    fault = {"TOKENMILL_FAULT": "commit:before-record:2", "TOKENMILL_FAULT_ONCE": str(once)}
    _score(recipe, 2, fault).check()
    assert once.exists()
    store = open_store(str(tmp_path / "root"))
    assert faults_in(store) == []
    assert trusted(store) == _expected(finished)


@pytest.mark.ray
@pytest.mark.slow
def test_driver_killed_on_ray_and_resumed_with_another_number_of_workers_leaves_the_same_files(finished, tmp_path):
    recipe = _before_score(finished, tmp_path)
    store = open_store(str(tmp_path / "root"))
    assert _score(recipe, 2, {"TOKENMILL_FAULT": "run:after-unit:1"}).was_killed
    assert faults_in(store) == []
    assert trusted(store).items() <= _expected(finished).items()
    _score(recipe, 1).check()
    assert faults_in(store) == []
    assert trusted(store) == _expected(finished)


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as running:
        yield running


@pytest.fixture(scope="module")
def large(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files whose archive goes up in several parts (ingest packs them unseen), and an undisturbed local run."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "data" / "photos").mkdir(parents=True)
    for number in range(3):
        (folder / "data" / "photos" / f"{number}.png").write_bytes(os.urandom(4 * 2**20))
    recipe = tiny.write_recipe(folder / "recipe.yaml", folder / "data", str(folder / "root"), sources=["photos"])
    commands.run("ingest", recipe).check()
    return folder


@pytest.mark.s3
@pytest.mark.parametrize(
    "point",
    [
        "commit:before-data:1",
        "storage:half-multipart:2",
        "commit:between-files:1",
        "commit:before-record:1",
        "commit:after-record:1",
        "snapshot:before-description:1",
    ],
)
def test_ingest_to_s3_killed_and_resumed_leaves_the_same_files_as_on_a_local_disk(
    point, large, commands, s3_server, tmp_path
):
    root = s3_server.new_root()
    store = open_store(root, s3_server.options)
    changes = {"storage": s3_server.options}
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", large / "data", root, changes, sources=["photos"])
    expected = trusted(open_store(str(large / "root")))

    assert commands.run("ingest", recipe, fault=point).was_killed
    assert faults_in(store) == []
    assert trusted(store).items() <= expected.items()

    commands.run("ingest", recipe).check()
    assert faults_in(store) == []
    assert trusted(store) == expected


@pytest.mark.s3
@pytest.mark.slow
def test_every_stage_on_s3_gives_the_same_files_as_on_a_local_disk(finished, commands, s3_server, tmp_path):
    root = s3_server.new_root()
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", finished.data, root, {"storage": s3_server.options})
    commands.run("run", recipe, "--until", "plan").check()
    store = open_store(root, s3_server.options)
    assert faults_in(store) == []
    assert trusted(store) == trusted(open_store(str(finished.root)))
