"""Scorers of clips through the stage, on coded films: pans of a photograph by a known way, bars, RAFT in halves."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from tests.films import ffmpeg
from tests.moving import photograph, window

from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.score_worker import ScoreWorker
from tokenmill.recipe import check_recipe

FPS, SECONDS, SIZE = 12, 2, (640, 360)
SHARES = {"still": 0.0, "slow": 0.02, "fast": 0.12}  # of the shorter edge in half a second


def _pan(share: float) -> NDArray[np.uint8]:
    step = share * SIZE[1] * 2 / FPS
    return np.stack([window(photograph("coffee"), (20 + n * step, 30), SIZE) for n in range(FPS * SECONDS)])


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pans")
    for name, share in SHARES.items():
        encode_mp4(folder / f"{name}.mp4", _pan(share), FPS)
    # Stored 480 x 360 and shown 640 x 360, with bars of 80 of the 640 on either side.
    barred = "crop=480:360,pad=640:360:80:0,scale=480:360,setsar=4/3"
    ffmpeg("-i", folder / "still.mp4", "-vf", barred, "-r", FPS, "-pix_fmt", "yuv420p", folder / "barred.mp4")
    return folder


def _scored(films: Path, root: Path, scorers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return film → column → value."""
    recipe = {
        "root": str(root),
        "execution": {"executor": "inline", "decode_threads": 2},
        "sources": {"films": {"kind": "videos", "url": str(films)}},
        "filter": {"video": {"scorers": scorers}},
    }
    chain = Chain(recipe=check_recipe(recipe, "test"), options=ChainOptions(quiet=True))
    found: dict[str, dict[str, Any]] = {}
    for snapshot in chain.snapshots("score"):
        for row in pl.concat(snapshot.folder.read_rows(c) for c in snapshot.commits).iter_rows(named=True):
            assert row["fail_reason"] is None
            found.setdefault(row["key"].split(".")[0], {}).update(row)
    return found


def test_films_of_still_slow_and_fast_pans_are_measured_as_they_move(films: Path, tmp_path: Path) -> None:
    found = _scored(films, tmp_path, {"motion": {}, "black": {}, "letterbox": {}, "clip_hash": {}, "resolution": {}})
    assert found.keys() == {*SHARES, "barred"}
    assert found["still"]["motion"] < 0.002 and found["still"]["static_share"] == 1
    for name in ("slow", "fast"):
        assert found[name]["motion"] == pytest.approx(SHARES[name], rel=0.1)
        assert found[name]["static_share"] == 0 and found[name]["camera_shake"] < 0.01
    for name in SHARES:
        assert [found[name][f"content_{of}"] for of in ("left_px", "width_px", "share")] == [0, 640, 1]
        assert found[name]["black_share"] == found[name]["blank_share"] == 0


def test_bars_of_a_film_of_wide_pixels_are_told_as_it_is_shown(films: Path, tmp_path: Path) -> None:
    found = _scored(films, tmp_path, {"letterbox": {}, "resolution": {}})["barred"]
    assert (found["width_px"], found["height_px"]) == (640, 360)
    assert found["content_left_px"] == pytest.approx(80, abs=3)
    assert found["content_width_px"] == pytest.approx(480, abs=5)
    assert (found["content_top_px"], found["content_height_px"]) == (0, 360)


def test_raft_in_halves_leaves_what_one_process_does(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import save_file
    from torchvision.models import get_model

    torch.manual_seed(0)
    save_file(get_model("raft_small", weights=None).state_dict(), tmp_path / "raft.safetensors")
    raft = {"flow": "raft_small", "weights": str(tmp_path / "raft.safetensors"), "device": "cpu"}
    asked = {"motion": raft | {"short_side_px": 64, "num_updates": 1}}
    whole = _scored(films, tmp_path / "whole", asked)
    assert all(np.isfinite(row["motion"]) for row in whole.values()) and len(whole) == 4

    def in_halves(self: Any, job: Any) -> Any:
        there = ScoreWorker(self._pass, self._open_reader)
        parts = [there.compute(pickle.loads(pickle.dumps(chunk))) for chunk in self.prepare(job)]
        return self.complete(job, parts)

    monkeypatch.setattr(ScoreWorker, "__call__", in_halves)
    assert _scored(films, tmp_path / "halves", asked) == whole
