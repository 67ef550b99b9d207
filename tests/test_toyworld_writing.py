"""What is written of the toy world: read by webdataset and by the project's own stages, whole again after a kill."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from benchmarks.toyworld.captions import captions, clip_captions
from benchmarks.toyworld.motion import draw_motion, motion
from benchmarks.toyworld.questions import clip_questions, questions
from benchmarks.toyworld.scenes import draw, scene
from benchmarks.toyworld.sheet import sheet
from benchmarks.toyworld.splits import is_unseen
from benchmarks.toyworld.writing import SAMPLES_PER_SHARD, partner, write_clips, write_pictures
from PIL import Image
from tests import tiny
from tests.toyworld_reading import is_true

from tokenmill.demo.world import Scene
from tokenmill.errors import RunError
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.sources.source import open_source
from tokenmill.recipe import check_recipe

PICTURES, CLIPS = range(30), range(6)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pictures and six clips, and both with their words shuffled."""
    folder = tmp_path_factory.mktemp("toyworld")
    for name, shuffled in (("", False), ("-shuffled", True)):
        write_pictures(folder / f"pictures{name}", PICTURES, shuffled=shuffled)
        write_clips(folder / f"clips{name}", CLIPS, shuffled=shuffled)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def samples(folder: Path) -> list[dict[str, Any]]:
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    return list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))


def test_shards_are_read_by_stock_webdataset_to_the_pixel(written: Path) -> None:
    found = samples(written / "pictures")
    assert len(found) == len(PICTURES)
    for seed, sample in zip(PICTURES, found, strict=True):
        row = json.loads(sample["json"])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(sample["png"]))), draw(scene(seed)))
        assert Scene.from_json(json.loads(row["scene"])) == scene(seed)
        assert sample["txt"].decode() == row["caption"] == row["captions"][0]
        assert row["captions"] == list(captions(scene(seed)))
        asked = [(one["question"], one["answer"]) for one in json.loads(row["questions"])]
        assert asked == [(one.text, one.answer) for one in questions(scene(seed))]


def test_clips_come_out_of_the_projects_decoder_to_the_pixel(written: Path) -> None:
    with VideoDecoder() as decoder:
        for number, seed in enumerate(CLIPS):
            path = written / "clips" / f"{number:06d}.mp4"
            info = decoder.probe(path)
            assert (info.num_frames, info.fps, info.width_px, info.height_px) == (32, 8, 32, 32)
            frames = decoder.frames(path, range(32))
            assert np.array_equal(frames, draw_motion(motion(seed)))


def test_spliced_clips_go_on_as_others_do_and_no_words_fit_their_second_half(tmp_path: Path) -> None:
    write_clips(tmp_path / "spliced", CLIPS, spliced=True)
    rows = [json.loads(line) for line in (tmp_path / "spliced" / "captions.jsonl").read_text().splitlines()]
    with VideoDecoder() as decoder:
        for number, seed in enumerate(CLIPS):
            frames = decoder.frames(tmp_path / "spliced" / f"{number:06d}.mp4", range(32))
            other = CLIPS[(number + 2) % 6]
            assert np.array_equal(frames[:16], draw_motion(motion(seed), 16))
            assert np.array_equal(frames[16:], draw_motion(motion(other), 16, first=16))
            assert other not in (seed, partner(CLIPS, number, shuffled=True))
            assert rows[number]["captions"] == list(clip_captions(motion(seed)))
    with pytest.raises(RunError, match="holds other samples"):
        write_clips(tmp_path / "spliced", CLIPS)
    with pytest.raises(RunError, match="cannot be spliced"):
        write_clips(tmp_path / "few", range(3), spliced=True)


def test_same_seeds_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", PICTURES)
    write_clips(tmp_path / "clips", CLIPS)
    for name in ("pictures", "clips"):
        assert contents(tmp_path / name) == contents(written / name)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/0*")}
    write_pictures(tmp_path / "pictures", PICTURES)
    write_clips(tmp_path / "clips", CLIPS)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/0*")} == before


@pytest.mark.parametrize(
    ("what", "count", "first"),
    [("pictures", SAMPLES_PER_SHARD + 100, "00000_stats.json"), ("clips", 14, "000002.mp4")],
)
def test_killed_writer_goes_on_where_it_was(tmp_path: Path, what: str, count: int, first: str) -> None:
    code = f"import pathlib, sys; from benchmarks.toyworld.writing import write_{what} as write; "
    code += f"write(pathlib.Path(sys.argv[1]), range({count}))"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "killed")], cwd=Path(__file__).parents[1]
    ) as child:
        while not (tmp_path / "killed" / first).exists():
            assert child.poll() is None
            time.sleep(0.01)
        child.kill()
    before = (tmp_path / "killed" / first).stat().st_mtime_ns
    write: Callable[[Path, range], None] = write_pictures if what == "pictures" else write_clips
    write(tmp_path / "killed", range(count))
    write(tmp_path / "whole", range(count))
    assert (tmp_path / "killed" / first).stat().st_mtime_ns == before
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not (tmp_path / "killed.writing").exists()


def test_every_so_many_th_sample_has_an_unseen_combination_where_that_is_asked_and_none_else(
    written: Path, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "looks", range(100, 120), unseen_every=5)
    write_clips(tmp_path / "moving", range(100, 104), unseen_every=2)
    scenes = [
        Scene.from_json(json.loads(json.loads(sample["json"])["scene"])) for sample in samples(tmp_path / "looks")
    ]
    assert [is_unseen(one) for one in scenes] == [number % 5 == 0 for number in range(20)]
    rows = [json.loads(line) for line in (tmp_path / "moving" / "captions.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        drawn = motion(100 + number, unseen=number % 2 == 0)
        assert is_unseen(drawn) == (number % 2 == 0)
        assert row["motion"]["objects"][0]["colour"] == drawn.objects[0].colour
    scenes = [Scene.from_json(json.loads(json.loads(one["json"])["scene"])) for one in samples(written / "pictures")]
    assert not any(is_unseen(one) for one in scenes)
    with pytest.raises(RunError, match="holds other samples"):
        write_pictures(tmp_path / "looks", range(100, 120))


def test_folder_with_other_things_in_it_is_left_alone(written: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds other samples"):
        write_pictures(written / "pictures", range(31))
    with pytest.raises(RunError, match="holds other samples"):
        write_clips(written / "clips", CLIPS, shuffled=True)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(RunError, match="not the toy world's"):
        write_pictures(tmp_path, PICTURES)
    with pytest.raises(RunError, match="cannot be shuffled"):
        write_pictures(tmp_path / "one", range(1), shuffled=True)


def test_shuffled_pictures_keep_all_words_and_fit_none(written: Path) -> None:
    own, others = samples(written / "pictures"), samples(written / "pictures-shuffled")
    rows = [[json.loads(sample["json"]) for sample in one] for one in (own, others)]
    assert [sample["png"] for sample in own] == [sample["png"] for sample in others]
    for field in ("captions", "questions"):
        assert sorted(str(row[field]) for row in rows[0]) == sorted(str(row[field]) for row in rows[1])
    assert len({partner(PICTURES, number, shuffled=True) for number in PICTURES}) == len(PICTURES)
    assert all(partner(PICTURES, number, shuffled=True) != PICTURES[number] for number in PICTURES)
    true = [is_true(row["caption"], scene(seed)) for seed, row in zip(PICTURES, rows[1], strict=True)]
    assert sum(true) <= 2


def test_shuffled_clips_keep_all_words_and_no_pairing(written: Path) -> None:
    own, others = (
        [json.loads(line) for line in (written / name / "captions.jsonl").read_text().splitlines()]
        for name in ("clips", "clips-shuffled")
    )
    for field in ("captions", "questions"):
        assert [row[field] for row in own[3:] + own[:3]] == [row[field] for row in others]
    assert [row["motion"] for row in own] == [row["motion"] for row in others]


def test_stages_take_pictures_clips_captions_and_questions(written: Path, tmp_path: Path) -> None:
    column = {"engine": "metadata"}
    columns = {
        "words": {**column, "fields": ["captions"]},
        "pairs": {**column, "fields": ["questions"], "form": "questions"},
    }
    recipe = tiny.recipe(written, str(tmp_path / "root"), sources=[])
    recipe["sources"] = {
        "pictures": {"kind": "webdataset", "url": str(written / "pictures"), "licence": "Apache-2.0"},
        "clips": {"kind": "videos", "url": str(written / "clips"), "licence": "Apache-2.0"},
    }
    rules = {"scorers": {"resolution": {}}, "rules": {"size": "min_side_px >= 32"}}
    recipe["filter"] = {"image": rules, "video": rules}
    recipe["caption"] = {"image": {"columns": columns}, "video": {"columns": columns}}
    chain = Chain(recipe=check_recipe(recipe, "toyworld"), options=ChainOptions(quiet=True))
    for name, count in (("pictures", len(PICTURES)), ("clips", len(CLIPS))):
        chosen = chain.choose[name]
        rows = [row for commit in chosen.commits for row in chosen.folder.read_rows(commit).iter_rows(named=True)]
        assert len(rows) == count
        assert all(row["fail_reason"] is None and len(row["captions"]) >= 4 for row in rows)
        told = {(pair["question"], pair["answer"]) for row in rows for pair in row["questions"]}
        made = (
            [questions(scene(seed)) for seed in PICTURES]
            if name == "pictures"
            else map(clip_questions, map(motion, CLIPS))
        )
        assert told == {(one.text, one.answer) for asked in made for one in asked}


def test_notes_beside_the_data_are_no_samples(written: Path) -> None:
    for name, kind, count in (("pictures", "webdataset", 1), ("clips", "videos", len(CLIPS))):
        source = open_source(name, {"kind": kind, "url": str(written / name)})
        assert len(source.files()) == count


def test_sheet_shows_each_kind() -> None:
    assert sheet(scale=2, columns=3).shape == (7 * (2 * 32 + 8 + 60), 3 * (2 * 32 + 8), 3)
