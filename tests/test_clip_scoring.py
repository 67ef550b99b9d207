"""CLIP scorers in the stage `score`: the same files together, alone, and as two operators on Ray."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
from tests import tiny, tiny_clip
from tests.harness import run_alone, trusted

from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.recipe import check_recipe

HALVES = {"score": {"workers": 1, "cpus": 0.5, "decode": {"workers": 2, "cpus": 0.5}}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scoring")
    tiny.write_data(folder / "data")
    tiny_clip.linear_head(tiny_clip.write_folder(folder / "clip") / "head.pth")
    return folder


def changes(place: Path, *names: str) -> dict[str, object]:
    """Four scorers on one CLIP, one behind a gate that keeps some samples back, one behind another's score."""
    model = {"model": str(place / "clip"), "batch_size": 3, "device": "cpu"}
    head = {"head": str(place / "clip" / "head.pth")}
    scorers = {
        "colourfulness": {},
        "aesthetic": model | head,
        "nsfw": model | head | {"when": "colourfulness > 25"},
        "clip_similarity": model | {"when": "aesthetic < 10"},
        "clip_embedding": model,
    }
    wanted = {name: settings for name, settings in scorers.items() if not names or name in names}
    return {"filter.image": {"scorers": wanted}}


def all_scorers(place: Path) -> dict[str, object]:
    """Those on CLIP, one with a model behind a model's score, and all others of pictures, of captions and of texts."""
    blocked = place / "blocked"
    blocked.write_text("0123456789abcdef\n")
    pictures: dict[str, object] = {
        **changes(place)["filter.image"]["scorers"],  # type: ignore[index]
        "text_coverage": {"when": "aesthetic < 10 AND NOT is_monochrome"},
        "sharpness": {"longest_side_px": None},
        "blocklist": {"phash": str(blocked), "max_distance": 32},
        **{name: {} for name in ("resolution", "entropy", "perceptual_hash", "sha256", "caption_quality")},
    }
    clips = {
        "resolution": {},
        "aesthetic": pictures["aesthetic"] | {"frames": 3, "reduce": "min"},  # type: ignore[operator]
        "nsfw": pictures["nsfw"] | {"frames": 2, "reduce": "max", "when": "sharpness > 0"},  # type: ignore[operator]
        "sharpness": {"frames": "all", "reduce": "median"},
        "text_coverage": {"frames": 2, "when": "aesthetic < 10"},
    }
    texts = ("text_statistics", "language", "repetition", "character_ratios", "personal_data", "minhash")
    scenes = {"min_seconds": 0.25, "max_seconds": 1}
    return {
        "filter.image": {"scorers": pictures},
        "filter.video": {"scorers": clips, "scenes": scenes},
        "filter.text": {"scorers": {name: {} for name in texts}},
    }


def scored(place: Path, root: str, *names: str) -> dict[str, str]:
    """Score inline; returns the digest of every trusted file of the stage by its path."""
    return scored_as(place, root, changes(place, *names), ["scenes"])


def scored_as(place: Path, root: str, settings: dict[str, object], sources: list[str]) -> dict[str, str]:
    """Score some sources inline by a recipe with these changes."""
    value = tiny.recipe(place / "data", str(place / root), settings, sources=sources)
    chain = Chain(recipe=check_recipe(value, "tiny"), options=ChainOptions(quiet=True))
    assert chain.snapshots("score")
    store = open_store(str(place / root))
    return {path: digest for path, digest in trusted(store).items() if path.startswith("score/")}


def test_scorer_gives_the_same_files_alone_and_beside_others(place):
    together = scored(place, "together")
    for name in ("nsfw", "clip_embedding"):
        alone = scored(place, f"alone-{name}", "colourfulness", name)
        assert alone.items() <= together.items() and len(alone) > 4


def test_annotations_of_clip_scorers_are_complete(place):
    scored(place, "together")
    value = tiny.recipe(place / "data", str(place / "together"), changes(place), sources=["scenes"])
    chain = Chain(recipe=check_recipe(value, "tiny"), options=ChainOptions(quiet=True))
    tables = {}
    for snapshot in chain.snapshots("score"):
        rows = pl.concat([snapshot.folder.read_rows(commit) for commit in snapshot.commits])
        tables[snapshot.folder.config.settings["scorer"]] = rows
    good = pl.col("fail_reason").is_null()
    columns = {name: table.filter(good) for name, table in tables.items()}
    assert columns["aesthetic"].height == columns["clip_embedding"].height == 11
    assert columns["clip_embedding"].schema["clip_embedding"] == pl.Array(pl.Float16, tiny_clip.DIMENSION)
    for name in ("aesthetic", "clip_similarity", "clip_embedding"):
        assert columns[name][name].null_count() == 0
    through = columns["colourfulness"]["colourfulness"] > 25
    assert columns["nsfw"]["nsfw"].is_not_null().to_list() == through.to_list()
    assert 0 < through.sum() < 11


@pytest.mark.ray
@pytest.mark.slow
def test_two_operators_on_ray_leave_the_files_of_one_process(place, tmp_path):
    sources = ["scenes", "clips", "text"]
    expected = scored_as(place, "everything", all_scorers(place), sources)
    assert len({path.split("/")[2] for path in expected}) == 24  # a folder a scorer
    settings = all_scorers(place) | {"execution.executor": "ray", "execution.pools": HALVES}
    recipe = tiny.write_recipe(tmp_path / "r.yaml", place / "data", str(tmp_path / "root"), settings, sources=sources)
    for stage in ("ingest", "split"):
        shutil.copytree(place / "everything" / stage, tmp_path / "root" / stage)
    run_alone("score", recipe).check()
    found = trusted(open_store(str(tmp_path / "root")))
    assert {path: digest for path, digest in found.items() if path.startswith("score/")} == expected
