"""Clips decoded side by side: the same results in the same order, whatever the number of threads."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.clip_files import make_clip

from tokenmill.errors import RunError, SampleError, StorageError
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.clip_pool import DecoderPool, FilmCopy, clip_runs
from tokenmill.pipelines.decoding import DecodeLimits, SampleReader
from tokenmill.pipelines.recipe_sections import decode_limits
from tokenmill.recipe import Execution


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Make three films, one of them bad, and give the rows of their clips."""
    folder = tmp_path_factory.mktemp("films")
    make_clip(folder / "a.mp4", "-vf", "scale=160:68,setsar=1", "-c:v", "libx264", "-g", "24")
    (folder / "b.mp4").write_text("no film")
    shutil.copy(folder / "a.mp4", folder / "c.mp4")
    spans = [("a.mp4", start) for start in range(0, 240, 12)] + [("b.mp4", 0), ("b.mp4", 12), ("c.mp4", 30)]
    rows = [{"path": path, "start_frame": start, "end_frame": start + 12} for path, start in spans]
    return folder, pl.DataFrame(rows)


def reader(folder: Path, **limits) -> SampleReader:
    return SampleReader("films", {"kind": "videos", "url": str(folder)}, DecodeLimits(**limits))


def digest(decoder, path, row) -> str:
    frames = decoder.frames(path, range(row["start_frame"], row["end_frame"], 3), short_side_px=34)
    return hashlib.sha256(frames.tobytes()).hexdigest()


def test_clips_decoded_side_by_side_equal_those_decoded_one_by_one(films):
    folder, rows = films
    found = {}
    for threads in (1, 3):
        clips = reader(folder, threads=threads)
        found[threads] = [item.reason if isinstance(item, SampleError) else item for item in clips.clips(rows, digest)]
        clips.close()
    assert found[1] == found[3]
    assert found[1][20:22] == ["not_a_video"] * 2
    assert len(set(found[1])) == 22  # of 23: two share a reason, and the film twice there has other clips


def test_clips_of_one_film_are_spread_over_the_decoders(films):
    folder, rows = films
    clips, lock, used = reader(folder, threads=2), threading.Lock(), {}
    both = threading.Barrier(2, timeout=30)

    def note(decoder, path, row) -> int:
        with lock:
            used.setdefault(id(decoder), []).append(row["start_frame"])
        if row["start_frame"] in (0, 48):  # the first of the first two runs: they must be under way together
            both.wait()
        return row["start_frame"]

    assert list(clips.clips(rows[:20], note)) == list(range(0, 240, 12))
    clips.close()
    assert len(used) == 2
    assert all(starts == sorted(starts) for starts in used.values())


def test_results_that_nobody_takes_stay_few(films):
    folder, rows = films
    clips, done = reader(folder, threads=2), []
    results = clips.clips(rows[:20], lambda decoder, path, row: done.append(row["start_frame"]))
    next(results)
    results.close()
    assert len(done) <= 4 * 4
    clips.close()


def test_threads_at_work_when_the_pool_is_closed_leave_no_child_behind(films):
    folder, _ = films
    pool = DecoderPool(DecodeLimits().video_decoder)
    with pool.taken(folder / "a.mp4") as early:
        early.probe(folder / "a.mp4")
        pool.close()
        with pool.taken(folder / "a.mp4") as late:  # of a thread that had not come so far
            late.probe(folder / "a.mp4")
    assert early is not late
    assert early.process_id == late.process_id == 0


def test_films_that_fail_in_a_row_end_the_run(films):
    folder, rows = films
    clips = reader(folder, threads=2, failure_budget=1)
    with pytest.raises(RunError, match="2 samples failed in a row"):
        list(clips.clips(rows, digest))
    clips.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_film_that_is_gone_is_the_stores_fault_and_named(films, threads):
    folder, rows = films
    clips = reader(folder, threads=threads)
    gone = rows.with_columns(path=pl.lit("gone.mp4"))
    with pytest.raises(StorageError, match=r"films\d*/gone.mp4: cannot be read: FileNotFoundError"):
        list(clips.clips(gone, digest))
    clips.close()


def test_device_that_decodes_is_part_of_what_columns_are_known_by():
    run = Execution(video_hwaccel="cuda", clip_timeout_per_second_s=7, video_memory_bytes=1)
    limits = decode_limits(run)
    assert (limits.clip_timeout_per_second_s, limits.video_memory_bytes) == (7, 1)
    assert limits.settings == DecodeLimits().settings | {"video_hwaccel": "cuda"}
    assert "video_hwaccel" not in DecodeLimits().settings


def test_copy_of_a_film_is_made_once_and_goes_with_its_last_user():
    steps = []

    class Copy:
        def __enter__(self) -> Path:
            steps.append("made")
            return Path("film")

        def __exit__(self, *_: object) -> None:
            steps.append("gone")

    rows = [{"path": "film", "start_frame": number} for number in range(5)]
    runs = list(clip_runs(iter(rows), lambda path: Copy(), 2))
    assert [len(run.rows) for run in runs] == [2, 2, 1]
    with runs[1].copy, runs[0].copy:
        assert steps == ["made"]
    assert steps == ["made"]
    with runs[2].copy as path:
        assert path == Path("film")
    assert steps == ["made", "gone"]
    assert isinstance(runs[0].copy, FilmCopy)


def test_glimpses_of_a_clip_are_the_middles_of_its_thirds(films):
    folder, rows = films
    clips = reader(folder, threads=1)
    (glimpses,) = clips.clips(rows[:1], clips.glimpses)
    assert rows[0]["end_frame"].item() - rows[0]["start_frame"].item() == 12
    with clips.decoders.taken(folder / "a.mp4") as decoder:
        assert np.array_equal(glimpses, decoder.frames(folder / "a.mp4", [2, 6, 10], short_side_px=128))
    clips.close()


def test_copies_of_remote_films_are_gone_when_nobody_goes_on(films, tmp_path, monkeypatch):
    folder, rows = films
    store = open_store("memory://films-given-up")
    store.put("a.mp4", (folder / "a.mp4").read_bytes())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    clips = SampleReader("films", {"kind": "videos", "url": "memory://films-given-up"}, DecodeLimits(threads=1))
    results = clips.clips(rows[:20], digest)
    next(results)
    assert len(list(tmp_path.rglob("a.mp4"))) == 1
    results.close()
    assert not list(tmp_path.iterdir())

    def broken(decoder, path, row) -> str:
        raise ImportError("a library")

    with pytest.raises(ImportError):
        list(clips.clips(rows[:20], broken))
    assert not list(tmp_path.iterdir())
    clips.close()


def test_copy_that_cannot_be_made_fails_alike_for_all_its_users():
    @contextlib.contextmanager
    def copy(path: str) -> Iterator[Path]:
        raise StorageError(f"{path}: not there")
        yield

    rows = [{"path": "film"}] * 4
    for run in clip_runs(iter(rows), copy, 2):
        with pytest.raises(StorageError, match="not there"), run.copy:
            pass
