"""Emu3's video recipe as shipped, on films of photographs and a small CLIP: whom its rules drop."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from tests import tiny_clip
from tests.moving import photograph, window

from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.checks import check_chain
from tokenmill.pipelines.inspect_selection import inspect_recipe
from tokenmill.pipelines.questions import Asking
from tokenmill.pipelines.what_if import changed_rules
from tokenmill.recipe import load_recipe

RECIPE = Path(__file__).parents[1] / "pipelines" / "recipes" / "emu3-video.yaml"
FPS, SECONDS, SIZE = 2, 6, (640, 360)
Frames = NDArray[np.uint8]


def _pan(name: str, step_px: float, size: tuple[int, int] = SIZE) -> Frames:
    """Move a window to and fro over a photograph, by `step_px` ÷ 360 of the shorter edge in half a second."""
    steps = [abs((number * step_px + 120) % 240 - 120) for number in range(FPS * SECONDS)]
    image = np.atleast_3d(photograph(name))[..., [0, 0, 0]] if name == "page" else photograph(name)
    return np.stack([cv2.resize(window(image, (step, step), SIZE), size) for step in steps])


def _films() -> dict[str, Frames]:
    kept = _pan("coffee", 28)
    windowed = np.zeros_like(kept)
    for frame, inner in zip(windowed, kept, strict=True):
        frame[54:306, 96:544] = cv2.resize(inner, (448, 252))
    return {
        "kept": kept,
        "copy": np.stack([cv2.resize(frame, (720, 404)) for frame in kept[:, 2:-2]]),  # larger, so it is the one
        "other": _pan("flower", 28),
        "still": _pan("china", 0.4),
        "slow": _pan("rocket", 6),  # .024
        "wild": _pan("astronaut", 60),  # .236
        "small": _pan("flower", 30, (480, 270)),
        "windowed": windowed,
        "short": kept[: FPS * 4],
        "dark": np.full_like(kept, 14),
        "page": _pan("page", 24),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("emu3-video")
    (folder / "films").mkdir()
    for name, frames in _films().items():
        encode_mp4(folder / "films" / f"{name}.mp4", frames, FPS)
    tiny_clip.write_folder(folder / "clip")
    for score in (4.0, 6.0):
        head = {"weight": torch.zeros(1, tiny_clip.DIMENSION), "bias": torch.tensor([score])}
        torch.save(head, folder / f"head-{score}.pth")
    return folder


def _chain(folder: Path, score: float) -> Chain:
    """Return the recipe with a small CLIP and a head that gives every frame the same score."""
    asked = load_recipe(RECIPE).filter["video"].scorers["aesthetic"]
    model = f"model: {folder / 'clip'}, head: {folder / f'head-{score}.pth'}"
    how = f"frames: {asked.frames}, reduce: {asked.reduce}, when: {asked.when}"
    changes = [
        f"root={folder / 'root'}",
        f"sources.web.url={folder / 'films'}",
        f"filter.video.scorers.aesthetic={{{model}, {how}}}",
        "execution={executor: inline, decode_threads: 2}",
        "tokenize.vocabulary={name: bytes}",
        "tokenize.vision={name: scenes}",
    ]
    return Chain(recipe=load_recipe(RECIPE, changes), options=ChainOptions(quiet=True))


def _fates(chain: Chain) -> dict[str, str]:
    rows = pl.concat(s.folder.read_rows(commit) for s in chain.select.values() for commit in s.commits)
    return {key.split(".")[0]: reason or "kept" for key, reason in rows.select("key", "drop_reason").iter_rows()}


def test_emu3_video_recipe_holds_together_as_a_whole(folder: Path) -> None:
    check_chain(_chain(folder, 6.0))
    recipe = load_recipe(RECIPE)
    assert recipe.execution.pools["tokenize"].gpus == 1
    assert recipe.tokenize.vision.model_dump()["device"] == "cuda"


def test_emu3_video_recipe_asks_about_twelve_frames_and_about_long_clips_in_parts() -> None:
    captions = load_recipe(RECIPE).caption["video"]
    dense = captions.columns["dense"]
    assert (dense.engine, dense.frames, dense.long_seconds) == ("openai", 12, 20)
    assert captions.slots == ({"dense": 1.0, "original": 0.0},)
    asking = Asking.of(dense, "video", "web")
    row = {"key": "k", "sha256": "0" * 64, "caption": "", "metadata": "{}", "width_px": 64, "height_px": 36}
    row |= {"start_frame": 0, "end_frame": 1008, "start_seconds": 0.0, "end_seconds": 42.0, "fps": 24.0}
    lengths = [q.end_seconds - q.start_seconds for q in asking.questions(pl.DataFrame([row]))]  # type: ignore[operator]
    assert lengths == pytest.approx([14.0] * 3)


def test_emu3_video_recipe_says_how_to_ask_for_another_floor_of_motion(folder: Path) -> None:
    chain = _chain(folder, 6.0)
    told = re.findall(r'--what-if "(.+?)"', RECIPE.read_text())
    _, (changed,) = changed_rules(chain, told)
    assert (changed.rule, changed.before) == ("motion", chain.recipe.filter["video"].rules["motion"].keep)


def test_emu3_video_recipe_keeps_what_moves_and_is_beautiful_and_names_why_the_others_go(folder: Path) -> None:
    chain = _chain(folder, 6.0)
    assert _fates(chain) == {
        "kept": "near_duplicate",
        "copy": "kept",
        "other": "kept",
        "still": "motion",
        "slow": "motion",
        "wild": "motion",
        "small": "resolution",
        "windowed": "letterbox",
        "dark": "black",
        "page": "text",
    }
    assert chain.split["web"].counts.dropped == {"no_long_scene": 1}  # `short`


def test_emu3_video_recipe_s_floor_and_ceiling_can_be_moved_without_a_model(folder: Path) -> None:
    chain = _chain(folder, 6.0)
    assert _fates(chain)["slow"] == _fates(chain)["wild"] == "motion"
    told = inspect_recipe(chain.recipe, what_if=["motion: motion >= 0.01 AND motion <= 0.3"])
    funnels = told["modalities"]["video"]["total"]
    assert funnels["what_if"]["kept"] - funnels["funnel"]["kept"] == 2, "`slow` and `wild`, not `still`"


def test_emu3_video_recipe_drops_what_has_one_ugly_frame_and_then_looks_for_no_text(folder: Path) -> None:
    chain = _chain(folder, 4.0)
    fates = _fates(chain)
    assert {name for name, fate in fates.items() if fate == "aesthetic"} == {"kept", "copy", "other", "page"}
    scored = {s.folder.config.settings["scorer"]: s for s in chain.score["web"]}
    rows = pl.concat(scored["text_coverage"].folder.read_rows(c) for c in scored["text_coverage"].commits)
    assert rows["text_coverage"].null_count() == rows.height
