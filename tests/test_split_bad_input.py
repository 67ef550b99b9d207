"""Two hundred clips, ten of them bad in ten ways: each costs itself and says why, killed and resumed or not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from tests import tiny
from tests.bad_films import FAULTS, MAX_PIXELS, REASONS, write_bad_films
from tests.films import segments
from tests.harness import Commands, faults_in, trusted

from tokenmill.commands import make_chain
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.ingest import ingest_work
from tokenmill.recipe import load_recipe

GOOD = 190
KILLS = {  # where one run after the other dies: the stage it was in, and how many records or files before
    "ingest": "commit:before-record:1",
    "split": "commit:before-data:3",
    "score": "commit:before-record:4",
    "select": "commit:after-record:6",
    "tokenize": "commit:between-files:2",
}
TOKENS = {  # one window of four small frames a clip
    "tokenize.video.fps": 8,
    "tokenize.video.long": "first",
    "tokenize.video.max_seconds": 0.5,
    "tokenize.video.min_area": 256,
    "tokenize.video.max_area": 256,
}
CHANGES = {
    "filter.video.scenes.unit_seconds": 80,
    "filter.video.scenes.min_seconds": 0.5,
    **TOKENS,
    "execution.max_pixels": MAX_PIXELS,
    "execution.clip_timeout_s": 3,
    "execution.unit_rows": 60,
}


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    clips = segments(folder / "clips", GOOD)
    write_bad_films(folder / "clips", clips[0])
    rows = [{"file": clip.name, "caption": f"clip {number}"} for number, clip in enumerate(clips)]
    (folder / "clips/captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(folder: Path, data: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return tiny.write_recipe(folder / "recipe.yaml", data, str(folder / "root"), CHANGES, sources=("clips",))


@pytest.fixture(scope="module")
def undisturbed(commands: Commands, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = recipe(tmp_path_factory.mktemp("undisturbed"), data)
    commands.run("run", path, "--until", "tokenize", fault=FAULTS).check()
    return path


def tables(path: Path, stage: str) -> pl.DataFrame:
    """Return all rows of a stage, of the first of its folders."""
    snapshot = next(iter(make_chain(load_recipe(path, []), set(), quiet=True).snapshots(stage)))
    return pl.concat([snapshot.folder.read_rows(commit) for commit in snapshot.commits])


def test_each_bad_film_costs_itself_and_names_its_reason(undisturbed):
    rows = {stage: tables(undisturbed, stage) for stage in ("ingest", "split", "score", "select", "tokenize")}
    assert len(REASONS) == 10
    assert rows["ingest"].height == rows["ingest"]["key"].n_unique() == GOOD + len(REASONS)
    assert rows["ingest"]["fail_reason"].null_count() == rows["ingest"].height
    failed = rows["split"].filter(pl.col("fail_reason").is_not_null())
    lost = {path: ("split", reason) for path, reason in failed.select("path", "fail_reason").iter_rows()}
    dropped = rows["select"].filter(pl.col("drop_reason").is_not_null())
    lost |= {key.split("#")[0]: ("select", why) for key, why in dropped.select("key", "drop_reason").iter_rows()}
    assert lost == REASONS
    good = sorted(f"{number:05d}.mp4" for number in range(GOOD))
    clips = rows["split"].filter(pl.col("start_frame").is_not_null())
    assert sorted(clips["path"]) == sorted([*good, "one-pixel.mp4"])
    for stage in ("score", "select"):
        assert sorted(rows[stage]["key"]) == sorted(clips["key"])
    assert sorted(key.split("#")[0] for key in rows["tokenize"]["key"]) == good
    assert rows["tokenize"]["fail_reason"].null_count() == GOOD


def test_source_killed_in_every_stage_and_resumed_leaves_the_same_files(commands, data, undisturbed, tmp_path):
    path = recipe(tmp_path / "killed", data)
    store = open_store(str(tmp_path / "killed/root"))
    for stage, kill in KILLS.items():
        assert commands.run("run", path, "--until", "tokenize", fault=f"{FAULTS},{kill}").was_killed, stage
        begun = set(store.folders())
        assert stage in begun and not begun & set(list(KILLS)[list(KILLS).index(stage) + 1 :]), (stage, begun)
    commands.run("run", path, "--until", "tokenize", fault=FAULTS).check()
    assert faults_in(store) == []
    assert trusted(store) == trusted(open_store(str(undisturbed.parent / "root")))


def test_thousand_clips_leave_at_most_four_objects_a_stage(commands, data, tmp_path):
    folder = tmp_path / "data/clips"
    folder.mkdir(parents=True)
    clip = (data / "clips/00000.mp4").read_bytes()
    lines = []
    for number in range(250):
        (folder / f"{number:04d}.mp4").write_bytes(clip)
        caption = {"caption": "a clip"} if number < 10 else {}  # what has none costs no tokens, and no fewer objects
        lines.append(json.dumps({"file": f"{number:04d}.mp4", **caption}) + "\n")
    (folder / "captions.jsonl").write_text("".join(lines))
    lengths = {"filter.video.scenes.min_seconds": 0.2, "filter.video.scenes.max_seconds": 0.25}
    changes = {**TOKENS, **lengths, "execution.unit_rows": 20_000}
    root = str(tmp_path / "root")
    path = tiny.write_recipe(tmp_path / "recipe.yaml", tmp_path / "data", root, changes, sources=("clips",))
    commands.run("run", path, "--until", "tokenize").check()
    assert tables(path, "score").height == 1000
    objects: Counter[str] = Counter()
    for entry in open_store(root).files():
        stage, _, _, inside, *_ = entry.path.split("/")
        objects[stage] += inside not in ("logs", "config.json", "snapshots")
    assert {"ingest", "split", "score", "select", "tokenize"} <= set(objects)
    assert all(number <= 4 for number in objects.values()), objects


def test_thousand_films_are_few_units_of_the_index(tmp_path):
    for number in range(1000):
        (tmp_path / f"{number:04d}.mp4").write_bytes(b"a film")
    settings = {"kind": "videos", "url": str(tmp_path)}
    work = ingest_work(open_store(str(tmp_path / "root")), "films", settings, unit_bytes=1000)
    assert len(work.units) <= 2  # a table and a record each
