"""The same archives of pictures, clips and text, by however many, killed or not, codes taken over or not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import tiny
from tests.harness import Commands, faults_in, run_alone, trusted

from tokenmill.manifests.storage import open_store

LICENCE = {"sources.scenes.licence": "CC0-1.0", "sources.photos.licence": "CC0-1.0", "sources.clips.licence": "CC0-1.0"}


def tokens_of(root: Path) -> dict[str, str]:
    """Return the digests of everything the stage tokenize wrote."""
    found = trusted(open_store(str(root)))
    return {path: digest for path, digest in found.items() if path.startswith("tokenize/")}


def copied(finished: Any, root: Path, *, without_tokens: bool) -> Path:
    """Copy a finished root as it was before `plan`, or before `tokenize`."""
    finished.copy(root)
    for stage in ("plans", "plan", *(["tokenize"] if without_tokens else [])):
        shutil.rmtree(root / stage, ignore_errors=True)
    return root


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as running:
        yield running


@pytest.mark.ray
@pytest.mark.slow
def test_archives_of_two_workers_on_ray_a_dead_one_a_dead_driver_and_a_resume_in_one_process_are_the_same(
    finished, commands, tmp_path
):
    root, once = copied(finished, tmp_path / "root", without_tokens=True), tmp_path / "died"
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", finished.data, str(root), {"execution.decode_threads": 3})
    fault = {"TOKENMILL_FAULT": "commit:before-record:2", "TOKENMILL_FAULT_ONCE": str(once)}
    on_ray = ("execution.executor=ray", "execution.workers=2")
    run_alone("tokenize", recipe, *on_ray, environment=fault).check()
    assert once.exists()
    assert tokens_of(root) == tokens_of(finished.root)
    shutil.rmtree(root / "tokenize")
    assert run_alone("tokenize", recipe, *on_ray, environment={"TOKENMILL_FAULT": "run:after-unit:2"}).was_killed
    assert 0 < len(tokens_of(root)) < len(tokens_of(finished.root))
    commands.run("tokenize", recipe).check()
    assert faults_in(open_store(str(root))) == []
    assert tokens_of(root) == tokens_of(finished.root)


@pytest.fixture(scope="module")
def licensed(finished, commands, tmp_path_factory) -> tuple[Path, Path]:
    """Tokenize everything under another licence, once from scratch and once after a run under the old one."""
    folder = tmp_path_factory.mktemp("licensed")
    for name, without_tokens in (("scratch", True), ("after", False)):
        root = copied(finished, folder / name, without_tokens=without_tokens)
        recipe = tiny.write_recipe(folder / f"{name}.yaml", finished.data, str(root), LICENCE)
        commands.run("tokenize", recipe).check()
    return folder / "scratch", folder / "after"


def test_archives_with_codes_taken_over_are_those_made_from_scratch(licensed, finished):
    scratch, after = map(tokens_of, licensed)
    assert len(scratch) > 20
    assert after == scratch | tokens_of(finished.root)


# Other points: test_faults_inline.
@pytest.mark.parametrize("point", ["commit:between-files:2", "storage:half-written:2"])
def test_run_killed_while_it_takes_codes_over_leaves_the_same_archives(licensed, finished, commands, tmp_path, point):
    root = copied(finished, tmp_path / "root", without_tokens=False)
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", finished.data, str(root), LICENCE)
    assert commands.run("tokenize", recipe, fault=point).was_killed
    commands.run("tokenize", recipe).check()
    assert tokens_of(root) == tokens_of(licensed[1])
    assert faults_in(open_store(str(root))) == []
