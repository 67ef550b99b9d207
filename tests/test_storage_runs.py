"""Whole runs on object stores that misbehave or are of another kind: the same digests as on a local disk."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from tests import tiny
from tests.faulty_proxy import FaultyProxy
from tests.harness import Commands, faults_in, trusted

from tokenmill.manifests.storage import open_store

pytestmark = [pytest.mark.s3, pytest.mark.slow]
SOURCES = ["scenes"]
PATIENCE = {"timeout_s": 1, "retry_timeout_s": 4}


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as running:
        running.run("--version")  # waits for the imports
        yield running


@pytest.fixture(scope="module")
def expected(finished, commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an undisturbed run of all data stages leaves on a local disk."""
    folder = tmp_path_factory.mktemp("expected")
    recipe = tiny.write_recipe(folder / "recipe.yaml", finished.data, str(folder / "root"), sources=SOURCES)
    commands.run("run", recipe, "--until", "plan").check()
    return trusted(open_store(str(folder / "root")))


def test_run_through_a_faulty_network_and_a_store_that_goes_away_ends_with_the_same_files(
    finished, expected, commands, s3_server, tmp_path
):
    root = s3_server.new_root()
    with FaultyProxy(s3_server.endpoint, rate=0.05, seed=7, stall_s=2) as proxy:
        changes = {"storage": {**s3_server.options, **PATIENCE, "endpoint_url": proxy.endpoint}}
        recipe = tiny.write_recipe(tmp_path / "recipe.yaml", finished.data, root, changes, sources=SOURCES)
        proxy.gone_after = 60
        gone = commands.run("run", recipe, "--until", "plan")
        ended = time.monotonic()
        assert gone.code == 1 and "run it again when the store is back" in gone.text
        assert "Traceback" not in gone.text and "testing" not in gone.text
        assert ended - proxy.gone_since < 4 + 1 + 15  # the rest is a busy machine
        proxy.gone, proxy.gone_after = False, None
        commands.run("run", recipe, "--until", "plan").check()
        assert sum(proxy.hits.values()) >= 5
    store = open_store(root, s3_server.options)
    assert faults_in(store) == []
    assert trusted(store) == expected


def test_run_on_google_storage_killed_and_resumed_ends_with_the_same_files(
    finished, expected, commands, gcs_server, tmp_path
):
    root = gcs_server.new_root()
    changes = {"storage": gcs_server.options}
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", finished.data, root, changes, sources=SOURCES)
    assert commands.run("run", recipe, "--until", "plan", fault="commit:before-record:4").was_killed
    commands.run("run", recipe, "--until", "plan").check()
    store = open_store(root, gcs_server.options)
    assert faults_in(store) == []
    assert trusted(store) == expected
    reach = ["--storage", f"endpoint={gcs_server.endpoint}", "--storage", "anonymous=true"]
    assert "no faults" in commands.run("verify", root, *reach).text
    assert commands.run("inspect", f"{root}/{next(iter(expected))}", *reach).code == 0
    assert "KEY=VALUE" in commands.run("verify", root, "--storage", "anonymous").text
