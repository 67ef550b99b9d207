"""Killed and resumed = uninterrupted, for every stage that writes, at every point where it matters (inline)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests import tiny
from tests.harness import Commands, faults_in, trusted

from tokenmill.manifests.storage import open_store

# stage → the command that runs it, and the further points it passes
STAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ingest": ("ingest", ("commit:between-files:1",)),
    "split": ("score", ()),
    "score": ("score", ()),
    "decontaminate": ("select", ()),
    "compare": ("select", ("commit:between-files:1",)),
    "duplicates": ("select", ()),
    "select": ("select", ()),
    "caption": ("caption", ()),
    "choose": ("caption", ()),
    "tokenize": ("tokenize", ("commit:between-files:2",)),
    "plan": ("plan", ("plan:before-description:1",)),
}
POINTS = (
    "commit:before-data:1",
    "commit:before-record:2",
    "commit:after-record:1",
    "storage:half-written:1",
    "storage:half-written:4",
    "snapshot:before-description:1",
)
CASES = [(stage, point) for stage, (_, more) in STAGES.items() for point in (*POINTS, *more)]


@dataclass(frozen=True)
class Undisturbed:
    """A run up to `plan` that nobody disturbed, and what it left."""

    sources: tuple[str, ...]
    data: Path
    root: Path
    trusted: dict[str, str]

    def before(self, stage: str, folder: Path) -> Path:
        """Copy the root as it was before a stage, with a recipe for it beside; returns the recipe."""
        root = Path(shutil.copytree(self.root, folder / "root"))
        later = list(STAGES)[list(STAGES).index(stage) :]
        for name in (*later, "plans"):
            shutil.rmtree(root / name, ignore_errors=True)
        if "decontaminate" in later:  # which is what reads and scores the evaluation sets
            for evaluation in root.glob("*/evaluation.*"):
                shutil.rmtree(evaluation)
        return _recipe(folder / "recipe.yaml", self.data, root, self.sources)


def _recipe(path: Path, data: Path, root: Path, sources: Sequence[str]) -> Path:
    exam = {"name": "exam", "kind": "images", "url": str(data / "exam"), "exact": False, "max_distance": 0}
    changes = {
        "filter.video.scenes.range_seconds": 0.5,
        "execution.unit_rows": 3,
        "filter.image.decontaminate": [exam],
        "filter.video.scorers": {
            "resolution": {},
            "colourfulness": {"frames": "all", "reduce": "max"},
            "sharpness": {"frames": 3, "reduce": "min", "when": "colourfulness > 0"},
        },
    }
    return tiny.write_recipe(path, data, str(root), changes, sources=sources)


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as running:
        yield running


@pytest.fixture(scope="module")
def stills(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return _undisturbed(commands, tmp_path_factory.mktemp("stills"), ("scenes", "photos", "text"), "plan")


@pytest.fixture(scope="module")
def clips(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Only the clips, and only up to their scores: starting a video decoder costs more than all the rest."""
    return _undisturbed(commands, tmp_path_factory.mktemp("clips"), ("clips",), "score")


def _undisturbed(commands: Commands, folder: Path, sources: tuple[str, ...], until: str) -> Undisturbed:
    tiny.write_data(folder / "data")
    (folder / "data/exam").mkdir()
    (folder / "data/exam/one.png").write_bytes(tiny.picture(3))
    recipe = _recipe(folder / "recipe.yaml", folder / "data", folder / "root", sources)
    commands.run("run", recipe, "--until", until).check()
    store = open_store(str(folder / "root"))
    assert faults_in(store) == []
    return Undisturbed(sources, folder / "data", folder / "root", trusted(store))


@pytest.mark.parametrize(("stage", "point"), CASES)
def test_stage_killed_and_resumed_leaves_the_same_files(stage, point, commands, request, tmp_path):
    undisturbed: Undisturbed = request.getfixturevalue("clips" if stage == "split" else "stills")
    command, _ = STAGES[stage]
    recipe = undisturbed.before(stage, tmp_path)
    store = open_store(str(tmp_path / "root"))

    assert commands.run(command, recipe, fault=point).was_killed
    assert faults_in(store) == [], "a kill may leave things unfinished, never wrong"
    left = {path: digest for path, digest in trusted(store).items() if not path.endswith("plan.json")}
    assert left.items() <= undisturbed.trusted.items(), "whatever can be trusted is final"

    commands.run(command, recipe).check()
    assert faults_in(store) == []
    upto = _upto(command, undisturbed)
    assert trusted(store) == upto
    commands.run(command, recipe).check()
    assert trusted(store) == upto


def test_stage_killed_again_and_again_still_gets_done(commands, stills, tmp_path):
    recipe = stills.before("score", tmp_path)
    store = open_store(str(tmp_path / "root"))
    kills = 0
    while commands.run("score", recipe, fault="commit:after-record:1").was_killed:
        kills += 1
    assert kills == sum("/commits/" in path for path in _upto("score", stills) if path.startswith("score/"))
    assert trusted(store) == _upto("score", stills)


@pytest.mark.parametrize("point", ["commit:before-data:2", "commit:after-record:1", "storage:half-written:1"])
def test_scoring_of_clips_killed_and_resumed_leaves_the_same_files(point, commands, clips, tmp_path):
    recipe = clips.before("score", tmp_path)
    store = open_store(str(tmp_path / "root"))
    assert commands.run("score", recipe, fault=point).was_killed
    assert trusted(store).items() <= clips.trusted.items()
    commands.run("score", recipe).check()
    assert trusted(store) == _upto("score", clips)


def _upto(command: str, undisturbed: Undisturbed) -> dict[str, str]:
    """Return what there is once a command has done its stages."""
    stages = list(STAGES)
    last = max(number for number, (runs, _) in enumerate(STAGES.values()) if runs == command)
    there = {*stages[: last + 1], *(("plans",) if command == "plan" else ())}
    found = {path: digest for path, digest in undisturbed.trusted.items() if path.split("/")[0] in there}
    if stages.index(command) >= stages.index("select"):
        return found
    return {path: digest for path, digest in found.items() if not path.split("/")[1].startswith("evaluation.")}
