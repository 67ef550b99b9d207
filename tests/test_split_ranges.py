"""Films divided by duration: clips do not hang on where ranges and units begin, no frame is decoded for nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests import tiny
from tests.films import ffmpeg, shots

from tokenmill.commands import make_chain
from tokenmill.errors import SampleError
from tokenmill.filters.scenes import SceneFinder, SceneSettings
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import open_store
from tokenmill.manifests.storage_fsspec import FsspecFiles
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.decoding import DecodeLimits, SampleReader
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.ingest import ingest_work
from tokenmill.pipelines.runner import run_stage
from tokenmill.pipelines.sources.source import local_mark
from tokenmill.pipelines.split_ranges import ESTIMATED_BYTES_PER_S, FilmRange, film_ranges, grouped_ranges
from tokenmill.pipelines.split_scan import FilmScan
from tokenmill.recipe import Recipe

# Shots, fades and black over 48 s, to be cut into ranges of 6 s: at 6 s black begins, at 12 a shot, at 36 and 42 a shot
# behind black; a scene covers all of the third range and black all of the sixth.
SHOTS = [2, 4, -0.5, 0.3, 5.2, 13, 1.7, -9.3, 2.5, 3, -0.5, 2, 0.2, 0.3, 2, 1.5]
FILM_S = sum(map(abs, SHOTS))
IN_EIGHT = {"filter.video.scenes.range_seconds": FILM_S / 8}
ALONE = {"filter.video.scenes.unit_seconds": 1}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """The film at one rate, and with rates that vary."""
    folder = tmp_path_factory.mktemp("films")
    shots(folder / "even.mp4", SHOTS, fade_s=1)
    slower = "select='not(mod(floor(t/3)\\,2)*mod(n\\,2))'"
    ffmpeg("-i", folder / "even.mp4", "-vf", slower, "-fps_mode", "vfr", folder / "varying.mkv")
    return folder


def ran(films: Path | str, root: Path, *changes: dict[str, float], stage: str = "split") -> list[Snapshot]:
    """Run up to a stage over a folder of films."""
    value = tiny.recipe(root.parent, str(root), {k: v for one in changes for k, v in one.items()}, sources=("clips",))
    value["sources"]["clips"]["url"] = str(films)
    value["filter"]["video"]["scorers"]["sharpness"] = {}
    chain = make_chain(Recipe.model_validate(value), quiet=True)
    return list(chain.snapshots(stage))


def rows(snapshot: Snapshot, *, sort: bool = True) -> pl.DataFrame:
    found = pl.concat([snapshot.folder.read_rows(commit) for commit in snapshot.commits])
    return found.sort("key") if sort else found


def clips(snapshot: Snapshot) -> pl.DataFrame:
    return rows(snapshot).filter(pl.col("start_frame").is_not_null())


def test_film_gives_the_same_clips_and_scores_as_one_range_and_as_eight_together_or_apart(films, tmp_path):
    results = {}
    for name, changes in {"one": (), "eight": (IN_EIGHT,), "apart": (IN_EIGHT, ALONE)}.items():
        (split,) = ran(films, tmp_path / name, *changes)
        scores = ran(films, tmp_path / name, *changes, stage="score")
        results[name] = (clips(split), *(rows(one) for one in sorted(scores, key=lambda one: one.folder.path)))
        assert split.counts.rows_in == (2 if name == "one" else 16)
        assert len(split.commits) == (16 if name == "apart" else 1)
        assert split.counts.rows_in == split.counts.kept + split.counts.dropped.get("no_scene_starts", 0)
        assert split.totals["scenes"] - split.totals["short_scenes"] == clips(split)["scene", "path"].unique().height
    found = results["one"][0]
    assert found.group_by("path").len()["len"].min() > 20
    for name in ("eight", "apart"):
        for one, other in zip(results["one"], results[name], strict=True):
            assert one.equals(other), name


def test_damage_in_a_long_film_costs_the_ranges_it_stands_in(films, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    ffmpeg("-i", films / "even.mp4", "-g", "10", folder / "damaged.mp4")
    (whole,) = ran(folder, tmp_path / "whole", IN_EIGHT)
    data = bytearray((folder / "damaged.mp4").read_bytes())
    middle = len(data) * 2 // 5
    data[middle : middle + 300] = np.random.default_rng(0).bytes(300)
    (folder / "damaged.mp4").write_bytes(data)
    for name, changes in {"together": (IN_EIGHT,), "apart": (IN_EIGHT, ALONE)}.items():
        (split,) = ran(folder, tmp_path / name, *changes)
        found, places = clips(split), ["start_frame", "end_frame", "start_seconds", "scene", "piece"]
        assert 1 <= sum(split.counts.failed.values()) <= 3  # it, a scene that runs into it, a lead-in
        assert split.counts.rows_in == 8
        assert 0.4 * clips(whole).height < found.height < clips(whole).height
        assert found.select(places).join(clips(whole).select(places), on=places, how="anti").height == 0


def test_film_that_was_replaced_after_ingest_gives_no_frames(films, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    for name in ("kept.mp4", "replaced.mp4"):
        (folder / name).write_bytes((films / "even.mp4").read_bytes())
    (split,) = ran(folder, tmp_path / "root")
    cut = clips(split)
    shots(folder / "replaced.mp4", SHOTS[::-1])
    reader = SampleReader("clips", {"kind": "videos", "url": str(folder)}, DecodeLimits())
    films_rows = pl.DataFrame(
        [{"path": one, "sha256": local_mark(films / "even.mp4")} for one in ("kept.mp4", "replaced.mp4")]
    )
    for rows_of in (cut, films_rows):
        found = list(reader.clips(rows_of, lambda decoder, path, row: "read"))
        told = [one.reason if isinstance(one, SampleError) else one for one in found]
        assert told == ["changed_since_ingest" if path == "replaced.mp4" else "read" for path in rows_of["path"]]
    reader.close()


def test_remote_film_is_fetched_once_a_unit(films, tmp_path, monkeypatch):
    store = open_store("memory://films-to-split")
    store.put("even.mp4", (films / "even.mp4").read_bytes())
    fetched: list[str] = []
    download = FsspecFiles.download
    monkeypatch.setattr(
        FsspecFiles, "download", lambda self, path, target: (fetched.append(path), download(self, path, target))
    )
    results = []
    for name, changes, times in (("together", (IN_EIGHT,), 1), ("apart", (IN_EIGHT, ALONE), 8)):
        fetched.clear()
        (split,) = ran("memory://films-to-split", tmp_path / name, *changes)
        assert (split.counts.rows_in, len(fetched)) == (8, times)
        results.append(clips(split))
    (near,) = ran(films, tmp_path / "near", IN_EIGHT)
    for found in results:
        assert found.equals(clips(near).filter(pl.col("path") == "even.mp4"))


def test_clips_have_the_times_of_their_frames_and_the_pieces_of_their_scenes(films, tmp_path):
    (split,) = ran(films, tmp_path / "root")
    with VideoDecoder() as decoder:
        for path, of_film in clips(split).group_by("path", maintain_order=True):
            times = decoder.times(films / str(path[0]))
            assert np.allclose(of_film["start_seconds"], times[of_film["start_frame"].to_numpy()])
            assert np.allclose(of_film["end_seconds"], times[of_film["end_frame"].to_numpy()])
            assert (of_film["start_frame"][1:] >= of_film["end_frame"][:-1]).all()
            for _, scene in of_film.group_by("scene", maintain_order=True):
                assert scene["piece"].to_list() == list(range(scene["pieces"][0])) == list(range(scene.height))
                assert scene["start_frame"][0] == scene["scene"][0]


def test_ranges_next_to_each_other_decode_each_frame_once_and_those_apart_only_their_lead_in_and_last_scene(films):
    settings = SceneSettings(min_seconds=0.25, max_seconds=1)
    path = films / "even.mp4"
    parts = [
        FilmRange(path="f", digest="", seconds=1, caption=None, metadata="{}", number=n, shares=8) for n in range(8)
    ]
    with VideoDecoder() as decoder:
        num_frames = decoder.probe(path).num_frames
        together = FilmScan(decoder, path, settings, 48)
        found = [scene for part in parts for scene in together.scenes(part)]
        assert together.decoded == num_frames
        apart, decoded = [], []
        for part in parts:
            alone = FilmScan(decoder, path, settings, 48)
            apart.append(alone.scenes(part))
            start, end = part.frames(num_frames)
            last = max([end, *(scene.end for scene in apart[-1])])
            decoded.append(alone.decoded)
            lead_in = SceneFinder(settings, np.arange(num_frames + 1.0)).lead_in_frames
            assert alone.decoded <= last - start + lead_in + 128 + _black_behind(last)
    assert [scene for scenes in apart for scene in scenes] == found


class Damaged:
    """Stands in for the decoder of a film that has one frame nobody can decode."""

    def __init__(self, info: Any, times: Any, frames: Any, damaged: int) -> None:
        self._info, self._times, self._frames, self._damaged = info, times, frames, damaged

    def probe(self, path: Path) -> Any:
        return self._info

    def times(self, path: Path) -> Any:
        return self._times

    def frames(self, path: Path, numbers: range, *, short_side_px: int) -> Any:
        if self._damaged in numbers:
            raise SampleError("corrupt", "a frame can't be decoded")
        return self._frames[numbers.start : numbers.stop]


def test_damage_costs_the_same_ranges_wherever_the_looking_began(films):
    settings, path = SceneSettings(min_seconds=0.25, max_seconds=1), films / "even.mp4"
    with VideoDecoder() as decoder:
        info, times = decoder.probe(path), decoder.times(path)
        frames = decoder.frames(path, range(info.num_frames), short_side_px=48)
    parts = [replace(part(1), number=number, shares=8) for number in range(8)]

    def found(scan: FilmScan, one: FilmRange) -> Any:
        try:
            return scan.scenes(one)
        except SampleError as error:
            return error.reason

    for damaged in range(0, info.num_frames, 19):
        decoder = Damaged(info, times, frames, damaged)
        scan = FilmScan(decoder, path, settings, 48)
        together = [found(scan, one) for one in parts]
        assert together == [found(FilmScan(decoder, path, settings, 48), one) for one in parts], damaged
        assert 1 <= together.count("corrupt") <= 3


def _black_behind(frame: int, fps: int = 10) -> int:
    """Return how much black lies behind a frame: whether a picture follows is known when it does."""
    edges = np.cumsum([0, *map(abs, SHOTS)]) * fps
    return max(
        (int(b - a) for a, b, s in zip(edges, edges[1:], SHOTS, strict=False) if s < 0 and b >= frame), default=0
    )


def part(seconds: float, name: str = "film") -> FilmRange:
    return FilmRange(path=name, digest="d", seconds=seconds, caption=None, metadata="{}")


def index_of(films: dict[str, tuple[int, float | None]], tmp_path: Path) -> Any:
    """Ingest files that are no films and set the seconds their headers would tell."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, (size, _) in films.items():
        with (folder / name).open("wb") as file:
            file.truncate(size)
    settings = {"kind": "videos", "url": str(folder)}
    work = ingest_work(open_store(str(tmp_path / "root")), "films", settings, unit_bytes=2**30)
    ((snapshot,),) = run_stage("ingest", [work], RunOptions(quiet=True))

    class Told:
        commits = snapshot.commits

        class folder:  # noqa: N801
            @staticmethod
            def read_rows(commit: Any) -> pl.DataFrame:
                table = snapshot.folder.read_rows(commit)
                told = [films[path][1] for path in table["path"]]
                return table.with_columns(pl.Series("seconds", told, pl.Float64))

    return Told


def test_long_film_is_many_inputs_and_a_header_that_lies_is_bounded_by_the_bytes(tmp_path):
    films = {
        "a-day.mp4": (10**9, 86_400.0),
        "lies.mp4": (10**6, 3e7),
        "short.mp4": (10**6, 5.0),
        "silent.mp4": (1800 * ESTIMATED_BYTES_PER_S, None),
    }
    found = film_ranges(index_of(films, tmp_path), 600)
    shares = {one.path: one.shares for one in found}
    assert shares == {"a-day.mp4": 144, "lies.mp4": 3, "short.mp4": 1, "silent.mp4": 3}
    assert len({one.reference for one in found}) == len(found)


def test_ten_thousand_short_films_are_few_units_and_a_new_one_changes_its_neighbours_only():
    films = [part(5, f"{number:05d}.mp4") for number in range(10_000)]
    units = grouped_ranges(films, 7200)
    assert len(units) <= 20
    assert max(sum(one.weight_s for one in unit) for unit in units) <= 7200
    after = grouped_ranges([*films[:5000], part(5, "04999b.mp4"), *films[5000:]], 7200)
    kept = {tuple(one.path for one in unit) for unit in units} & {tuple(one.path for one in unit) for unit in after}
    assert len(kept) >= len(units) - 6


def test_index_without_seconds_of_an_older_version_is_read():
    row = {"fail_reason": None, "path": "old.mp4", "length": 1200 * ESTIMATED_BYTES_PER_S, "sha256": "d"}
    table = pl.DataFrame([row | {"caption": "c", "metadata": "{}"}])

    class Old:
        commits = (1,)

        class folder:  # noqa: N801
            read_rows = staticmethod(lambda commit: table)

    assert [one.shares for one in film_ranges(Old, 600)] == [2, 2]  # type: ignore[arg-type]
