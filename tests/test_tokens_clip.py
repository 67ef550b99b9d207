"""Clips of every length as tokens: which frames, at which rate, and what becomes of those that would not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import tiny

from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.demo.scenes import motion, render_motion
from tokenmill.errors import RecipeError, RunError, SampleError
from tokenmill.manifests.inspect import inspect
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.checks import check_chain
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.report import report_page
from tokenmill.pipelines.status import render_status, status_of
from tokenmill.pipelines.tokens_clip import (
    ClipEncoder,
    ClipPolicy,
    TokenArea,
    choose,
    document_length,
    frames_on_show,
    sized_frames,
)
from tokenmill.pipelines.tokens_model import SharedVision
from tokenmill.recipe import check_recipe
from tokenmill.tokenize.documents import assembled_length
from tokenmill.tokenize.preprocess import resize
from tokenmill.tokenize.segments import Segment, TextSegment, VisionSegment
from tokenmill.tokenize.vision import load_vision_tokenizer
from tokenmill.tokenize.vocabulary import build_vocabulary

VOCABULARY = build_vocabulary({"name": "bytes", "codebook_size": 2048})
GRID = (4, 6)
TEXTS = [TextSegment(0, 12, "caption"), TextSegment(12, 40, "caption", variant=1)]


def even(frames: int, fps: float) -> np.ndarray:
    return np.arange(frames + 1) / fps


def chosen(policy: ClipPolicy, frames: int, fps: float = 24.0, **row: Any) -> Any:
    clip = {"start_frame": 0, "end_frame": frames, **row}
    return choose(clip, even(frames, fps), GRID, TEXTS, policy, VOCABULARY, 4)


def policy(**changes: Any) -> ClipPolicy:
    return ClipPolicy(**{"fps": 24.0, "long": "lower_fps", "max_ids": 1000, **changes})


def longest(segment: VisionSegment, texts: Sequence[Segment] = TEXTS) -> int:
    return max(assembled_length([*texts, segment], "generation", VOCABULARY, variant) for variant in (0, 1))


def test_frames_at_the_films_own_rate_are_all_of_them_however_times_are_rounded() -> None:
    for fps in (24.0, 23.976, 30000 / 1001, 25.0):
        times = np.round(even(500, fps), 3)
        assert frames_on_show(times, 100, 500, fps).tolist() == list(range(100, 500))
        assert frames_on_show(times, 100, 500, 60.0).tolist() == list(range(100, 500))


def test_frames_at_half_the_rate_are_every_second_one() -> None:
    assert frames_on_show(np.round(even(480, 24), 3), 5, 105, 12).tolist() == list(range(5, 105, 2))


def test_frames_of_a_variable_rate_stand_at_even_times() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.3, 1.3, 1.4, 1.5, 2.0])  # one is on show for a second
    numbers = frames_on_show(times, 0, 7, 2.0)
    assert numbers.tolist() == [0, 3, 3, 6]
    assert [times[n] <= k / 2 + 0.08 for k, n in enumerate(numbers)] == [True] * 4


@given(
    lengths=st.lists(st.floats(0.001, 3.0), min_size=2, max_size=60),
    start=st.integers(0, 20),
    fps=st.floats(0.2, 60.0),
)
@settings(max_examples=200, deadline=None)
def test_frames_are_never_more_than_the_clip_has_and_ascend_within_it(
    lengths: list[float], start: int, fps: float
) -> None:
    times = np.concatenate([[0.0], np.cumsum(lengths)])
    start = min(start, len(lengths) - 1)
    numbers = frames_on_show(times, start, len(lengths), fps)
    assert len(numbers) <= len(lengths) - start
    assert len(numbers) <= (times[-1] - times[start]) * fps + 1
    assert np.all(np.diff(numbers) >= 0)
    assert not len(numbers) or start <= numbers.min() <= numbers.max() < len(lengths)


def test_clip_that_fits_is_taken_whole_at_the_rate_asked_for() -> None:
    found = chosen(policy(), 64)
    assert (found.fit, found.segment.fps, found.segment.t) == ("whole", 24, 16)
    assert found.segment.seconds == round(64 / 24, 3)
    assert chosen(policy(), 64, pieces=3).fit == "sub_clip"


def test_clip_slower_than_asked_keeps_its_own_rate() -> None:
    found = chosen(policy(), 64, fps=30000 / 1001 / 2)
    assert (found.fit, found.segment.fps, len(found.numbers)) == ("whole", 14.985, 64)


@pytest.mark.parametrize("fps", [24000 / 1001, 24.0, 30000 / 1001])
def test_clips_of_a_film_have_its_rate_however_its_container_rounds_times(fps: float) -> None:
    times = np.round(even(3000, fps), 3)
    asked = policy(fps=round(fps), max_ids=100_000)
    segments = [
        choose({"start_frame": n, "end_frame": n + 64, "fps": fps}, times, GRID, TEXTS, asked, VOCABULARY, 4).segment
        for n in range(0, 2900, 37)
    ]
    assert {(segment.t, segment.fps, segment.seconds) for segment in segments} == {
        (16, round(fps, 3), round(64 / fps, 3))
    }


def test_clip_of_another_rate_than_its_films_average_keeps_its_own() -> None:
    clip = {"start_frame": 0, "end_frame": 64, "fps": 24.0}
    assert choose(clip, even(64, 12), GRID, TEXTS, policy(), VOCABULARY, 4).segment.fps == 12.0


@pytest.mark.parametrize("frames", [24 * 6, 24 * 13, 24 * 20, 24 * 60])
def test_long_clip_at_a_lower_rate_spans_all_its_time_and_fits_as_tightly_as_the_rates_allow(frames: int) -> None:
    found = chosen(policy(), frames)
    assert found.fit == "lowered"
    assert longest(found.segment) == document_length(found.segment, TEXTS, VOCABULARY) <= 1000
    divisor = 24 / found.segment.fps
    assert divisor == pytest.approx(round(divisor), rel=1e-3)
    assert found.segment.seconds == pytest.approx(frames / 24, abs=4 / found.segment.fps)
    assert found.numbers[-1] > frames - 2 * 4 * divisor
    faster = 24 / (round(divisor) - 1)
    steps = int(frames / 24 * faster) // 4
    assert longest(VisionSegment(steps, *GRID, 0, fps=round(faster, 3), seconds=1.0)) > 1000


def test_clip_that_does_not_fit_at_the_lowest_rate_is_refused_with_figures() -> None:
    with pytest.raises(SampleError, match=r"^too_long: \d+ ids \(\d+ latent frames of 4\*6 at 4 fps\), 1000 are"):
        chosen(policy(min_fps=4), 24 * 60)


def test_clip_of_which_no_latent_frame_fits_is_too_long_and_not_too_short() -> None:
    with pytest.raises(SampleError, match=r"^too_long: \d+ ids \(1 latent frames of 4\*6 at .* fps\), 30 are allowed"):
        chosen(policy(max_ids=30), 24)


def test_sub_clip_that_is_still_too_long_is_refused() -> None:
    assert chosen(policy(long="sub_clips"), 96, pieces=2).fit == "sub_clip"
    with pytest.raises(SampleError, match="too_long"):
        chosen(policy(long="sub_clips"), 24 * 20, pieces=2)


def test_clip_for_runs_is_taken_whole_and_told_apart_when_it_is_longer_than_a_context() -> None:
    found = chosen(policy(long="runs"), 24 * 60)
    assert (found.fit, found.segment.t, found.segment.fps) == ("runs", 360, 24)
    assert chosen(policy(long="runs"), 64).fit == "whole"


def test_first_seconds_are_taken_and_counted_as_cut() -> None:
    found = chosen(policy(long="first", max_seconds=2.0), 24 * 20)
    assert (found.fit, found.segment.seconds, found.numbers.tolist()) == ("cut", 2.0, list(range(48)))
    assert chosen(policy(long="first", max_seconds=2.0), 48).fit == "whole"


def test_clip_of_less_than_a_window_is_too_short() -> None:
    with pytest.raises(SampleError, match="clip_too_short"):
        chosen(policy(), 3)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    encode_mp4(path, render_motion(motion(3), 100, 64), 20)
    return path


def test_codes_batch_by_batch_are_those_of_all_frames_at_once(film: Path) -> None:
    vision = load_vision_tokenizer("scenes")
    area = TokenArea(min_area=1024, max_area=1024, max_aspect=5.0, multiple=8)
    encoder = ClipEncoder(SharedVision(vision), policy(fps=20.0, long="runs"), area, VOCABULARY)
    row = {"start_frame": 7, "end_frame": 100, "width_px": 64, "height_px": 64}
    with VideoDecoder() as decoder:
        codes, sampling = encoder(decoder, film, row, TEXTS)
        frames = decoder.frames(film, range(7, 99))
    expected = vision.encode_video(np.stack([resize(frame, (32, 32)) for frame in frames])[None])[0]
    assert codes.shape == (23, 4, 4)  # 92 frames: more than the model's batch of 64
    assert np.array_equal(codes, expected)
    assert sampling.numbers.tolist() == list(range(7, 99))


def test_frames_shown_twice_are_decoded_once_and_large_ones_shrunk_before(film: Path) -> None:
    with VideoDecoder() as decoder:
        found = sized_frames(decoder, film, np.array([3, 3, 5, 9, 9, 9]), (24, 24))
        whole = decoder.frames(film, [3, 5, 9], short_side_px=48)
    assert np.array_equal(found, np.stack([resize(whole[n], (24, 24)) for n in (0, 0, 1, 2, 2, 2)]))


def test_clip_of_a_film_that_became_shorter_says_so(film: Path) -> None:
    area = TokenArea(min_area=1024, max_area=1024, max_aspect=5.0, multiple=8)
    encoder = ClipEncoder(SharedVision(load_vision_tokenizer("scenes")), policy(), area, VOCABULARY)
    row = {"start_frame": 0, "end_frame": 101, "width_px": 64, "height_px": 64}
    with VideoDecoder() as decoder, pytest.raises(SampleError, match="changed_since_ingest"):
        encoder(decoder, film, row, TEXTS)


def test_fault_of_the_vision_tokenizer_ends_the_run_and_is_no_bad_sample(film: Path) -> None:
    class Broken:
        spatial_factor, temporal_factor, batch_size = 8, 4, 16

        def encode_video(self, frames: np.ndarray) -> np.ndarray:
            raise IndexError("index 2048 is out of bounds")

    area = TokenArea(min_area=1024, max_area=1024, max_aspect=5.0, multiple=8)
    encoder = ClipEncoder(SharedVision(cast(Any, Broken())), policy(), area, VOCABULARY)
    row = {"start_frame": 0, "end_frame": 20, "width_px": 64, "height_px": 64}
    with VideoDecoder() as decoder, pytest.raises(RunError, match="vision tokenizer failed: IndexError: index 2048"):
        encoder(decoder, film, row, TEXTS)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write films of 1, 4 and 12 seconds, without a cut."""
    folder = tmp_path_factory.mktemp("clips") / "clips"
    folder.mkdir()
    for number, seconds in enumerate((1, 4, 12)):
        frames = render_motion(motion(number), 8, 48)
        encode_mp4(folder / f"film-{number}.mp4", np.concatenate([frames, frames[::-1]] * 12)[: seconds * 8], 8)
    rows = [{"file": f"film-{number}.mp4", "caption": "two squares that move"} for number in range(3)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.parent


def chain(clips: Path, root: Path, *, failure_budget: int = 100, **video: Any) -> Chain:
    changes = {
        "execution.failure_budget": failure_budget,
        "filter.video.scenes": {"content": None, "min_seconds": 0.5, "max_seconds": 60},
        "tokenize.video": {"min_area": 1024, "max_area": 1024, "fps": 8, "max_ids": 220, **video},
        "plan.held_out": 0.0,
    }
    recipe = check_recipe(tiny.recipe(clips, str(root), changes, sources=["clips"]), "clips")
    return Chain(recipe=recipe, options=ChainOptions(quiet=True))


def test_clips_of_all_lengths_fit_by_a_lower_rate_and_index_status_and_report_tell_how(
    clips: Path, tmp_path: Path
) -> None:
    done = chain(clips, tmp_path / "root", long="lower_fps", min_fps=1)
    snapshot = done.tokenize["clips"]
    assert {n: v for n, v in snapshot.totals.items() if n.startswith("clips.")} == {
        "clips.lowered": 1,
        "clips.whole": 2,
    }
    rows = pl.concat(snapshot.folder.read_rows(commit) for commit in snapshot.commits)
    segments = [json.loads(text)[-1] for text in rows["segments"]]
    assert dict(zip(rows["key"], rows["fit"], strict=True)) == {
        "film-0.mp4#0000000-0000008": "whole",
        "film-1.mp4#0000000-0000032": "whole",
        "film-2.mp4#0000000-0000096": "lowered",
    }
    assert [(s["vision"][0], s["fps"], s["seconds"]) for s in segments] == [
        (2, 8.0, 1.0),
        (8, 8.0, 4.0),
        (8, 2.667, 12.0),
    ]
    assert sum(done.plan.description["counts"]["dropped"].values()) == 0
    assert "clips whole 2, lowered 1" in render_status(status_of(done.recipe))
    told = inspect(done.store, snapshot.folder.path)
    assert next(iter(told["snapshots"].values()))["totals"]["clips.lowered"] == 1
    page = report_page(done.store, done.recipe, done)
    assert "at a lower rate" in page
    assert page.count("<video") == 3
    assert "data:video/mp4;base64," in page


def test_report_leaves_out_a_clip_whose_film_became_shorter_since(clips: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clips, tmp_path / "data"))
    done = chain(copy, tmp_path / "root")
    _ = done.plan
    encode_mp4(copy / "clips" / "film-2.mp4", render_motion(motion(2), 16, 48), 8)
    assert report_page(done.store, done.recipe, done).count("<video") == 2


def test_clips_that_do_not_fit_are_rows_with_a_reason(clips: Path, tmp_path: Path) -> None:
    done = chain(clips, tmp_path / "root", long="sub_clips")
    snapshot = done.tokenize["clips"]
    assert snapshot.counts.failed == {"too_long": 1}
    rows = pl.concat(snapshot.folder.read_rows(commit) for commit in snapshot.commits)
    (message,) = rows.filter(pl.col("fail_reason") == "too_long")["fail_message"]
    assert message == "542 ids (24 latent frames of 4*4 at 8 fps), 220 are allowed"
    assert snapshot.totals["clips.whole"] == 2


def test_any_number_of_clips_in_a_row_may_be_too_long(clips: Path, tmp_path: Path) -> None:
    done = chain(clips, tmp_path / "root", failure_budget=1, long="sub_clips", max_ids=60)
    assert done.tokenize["clips"].counts.failed == {"too_long": 3}


def test_runs_are_planned_each_with_the_caption_and_its_own_seconds(clips: Path, tmp_path: Path) -> None:
    done = chain(clips, tmp_path / "root", long="runs")
    assert done.tokenize["clips"].totals["clips.runs"] == 1
    plan = done.plan
    runs = sorted((d.frame, d.frames, d.length) for p in range(plan.num_packs) for d in plan.documents(p) if d.frames)
    assert [(frame, frames) for frame, frames, _ in runs] == [(0, 8), (8, 8), (16, 8)]
    run = VisionSegment(8, 4, 4, 0, fps=8.0, seconds=4.0)
    caption = TextSegment(0, len("two squares that move"), "caption")
    template = next(d.template for p in range(plan.num_packs) for d in plan.documents(p) if d.frames)
    assert {length for *_, length in runs} == {assembled_length([caption, run], template, VOCABULARY)}


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"long": "first"}, "long: first needs max_seconds"),
        ({"max_seconds": 3}, "long: first needs max_seconds"),
        ({"fps": 2, "min_fps": 4}, "min_fps of 4 is more than fps, 2"),
        ({"long": "squeezed"}, "tokenize.video.long"),
    ],
)
def test_settings_of_long_clips_that_contradict_each_other_are_refused(section: dict[str, Any], told: str) -> None:
    value = {"root": "r", "sources": {"a": {"kind": "videos", "url": "u"}}, "tokenize": {"video": section}}
    with pytest.raises(RecipeError, match=told):
        check_recipe(value, "recipe")


def test_clips_tokenized_for_more_ids_than_the_plans_context_are_refused_before_anything_runs(
    clips: Path, tmp_path: Path
) -> None:
    asked = chain(clips, tmp_path / "root", max_ids=257)
    assert asked.recipe.plan.context == 256
    check_chain(asked)  # the plan makes runs of them
    changed = {"plan": {**asked.recipe.plan.model_dump(exclude_unset=True), "split_long_clips": False}}
    recipe = check_recipe({**asked.recipe.model_dump(exclude_unset=True), **changed}, "recipe")
    with pytest.raises(RecipeError, match=r"tokenize\.video\.max_ids: 257 is above plan\.context, 256"):
        check_chain(Chain(recipe=recipe, options=ChainOptions(quiet=True)))


def test_runs_without_a_plan_that_makes_them_are_refused_and_no_credential_is_shown() -> None:
    value = {"root": "r", "storage": {"key": "hush"}, "sources": {"a": {"kind": "videos", "url": "u"}},
             "tokenize": {"video": {"long": "runs"}}}  # fmt: skip
    with pytest.raises(RecipeError, match=r"set plan\.split_long_clips") as refused:
        check_recipe(value, "recipe")
    assert "hush" not in str(refused.value)
