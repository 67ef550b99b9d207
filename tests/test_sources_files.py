"""Folders of loose pictures and clips: what is packed, what stays where it is, and what a change of a file costs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import polars as pl
import pytest
from tests.tiny import picture

from tokenmill.errors import RunError
from tokenmill.manifests.archive import iterate_members
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.ingest import ingest_work
from tokenmill.pipelines.runner import run_stage
from tokenmill.pipelines.sources.source import RawFile, open_source


def _folder(path: Path, count: int = 4) -> Path:
    (path / "sub").mkdir(parents=True)
    for number in range(count):
        (path / "sub" / f"pic.{number}.png").write_bytes(picture(number))
    rows = [{"file": f"sub/pic.{number}.png", "caption": f"number {number}", "n": number} for number in range(2)]
    (path / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return path


def _files(kind: str, folder: Path) -> dict[str, RawFile]:
    return {file.path: file for file in open_source("s", {"kind": kind, "url": str(folder)}).files()}


def test_pictures_are_packed_in_order_with_captions_beside_and_their_places_hold(tmp_path):
    folder = _folder(tmp_path / "raw")
    store = open_store(str(tmp_path / "root"))
    work = ingest_work(store, "photos", {"kind": "images", "url": str(folder)}, unit_bytes=2**30)
    (((snapshot,)),) = run_stage("ingest", [work], RunOptions(quiet=True))
    found = {}
    for commit in snapshot.commits:
        archive = snapshot.folder.at(commit.data.name)
        for row in snapshot.folder.read_rows(commit).iter_rows(named=True):
            found[row["key"]] = row
            data = store.read_range(archive, row["offset"], row["length"])
            assert data == (folder / row["key"]).read_bytes()
            assert row["sha256"] == hashlib.sha256(data).hexdigest()
        with store.open(archive) as stream:
            members = {member.name: data for member, data in iterate_members(stream)}
        assert members["sub/pic%2E0.png"[:-4] + "%2Epng.png"] == picture(0)
        assert members["sub/pic%2E0%2Epng.txt"] == b"number 0"
    assert list(found) == sorted(f"sub/pic.{number}.png" for number in range(4))
    assert [row["caption"] for row in found.values()] == ["number 0", "number 1", None, None]
    assert json.loads(found["sub/pic.1.png"]["metadata"])["n"] == 1
    assert snapshot.counts.rows_in == snapshot.counts.kept == 4


@pytest.mark.parametrize(("kind", "schema"), [("images", 1), ("videos", 2)])
def test_index_of_films_alone_has_seconds_and_a_newer_schema(tmp_path, kind, schema):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "one.png").write_bytes(picture(1))
    (tmp_path / "raw" / "one.mp4").write_bytes(b"no film")
    work = ingest_work(
        open_store(str(tmp_path / "root")), "s", {"kind": kind, "url": str(tmp_path / "raw")}, unit_bytes=9
    )
    (((snapshot,)),) = run_stage("ingest", [work], RunOptions(quiet=True))
    rows = snapshot.folder.read_rows(snapshot.commits[0])
    assert snapshot.folder.config.schema == schema
    assert ("seconds" in rows.columns) == (kind == "videos")
    assert rows["fail_reason"].to_list() == [None]


def test_packed_units_are_bounded_by_raw_bytes(tmp_path):
    folder = _folder(tmp_path / "raw")
    work = ingest_work(open_store(str(tmp_path / "root")), "p", {"kind": "images", "url": str(folder)}, unit_bytes=1500)
    assert len(work.units) == 4


def test_clips_stay_where_they_are_and_are_known_by_size_head_and_tail(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(bytes(300_000))
    source = open_source("s", {"kind": "videos", "url": str(tmp_path)})
    (file,) = source.files()
    (row,) = source.index(file)
    assert row.payload is None
    assert (row.key, row.path, row.length, row.extension) == ("clip.mp4", "clip.mp4", 300_000, "mp4")
    assert row.sha256 == file.extra["mark"]


@pytest.mark.parametrize("change", ["head", "tail", "size", "caption"])
def test_a_changed_file_has_another_reference_and_the_others_keep_theirs(tmp_path, change):
    for number in range(2):
        (tmp_path / f"{number}.mp4").write_bytes(bytes(200_000))
    before = _files("videos", tmp_path)
    data = bytearray(200_000)
    if change == "caption":
        (tmp_path / "captions.jsonl").write_text('{"file": "0.mp4", "caption": "new"}\n')
    else:
        data[{"head": 10, "tail": -10, "size": 0}[change]] = change != "size"
        (tmp_path / "0.mp4").write_bytes(bytes(data) + b"x" * (change == "size"))
    after = _files("videos", tmp_path)
    assert after["0.mp4"].reference != before["0.mp4"].reference
    assert after["1.mp4"].reference == before["1.mp4"].reference


def test_captions_that_cannot_be_read_stop_the_run_and_name_the_line(tmp_path):
    folder = _folder(tmp_path / "raw")
    with (folder / "captions.jsonl").open("a") as file:
        file.write("\n{broken\n")
    with pytest.raises(RunError, match=r"captions\.jsonl:3"):
        _files("images", folder)


def test_only_pictures_are_taken_from_a_folder(tmp_path):
    folder = _folder(tmp_path / "raw", 1)
    for name in ("notes.txt", "clip.mp4", "sub/CAPITAL.JPEG"):
        (folder / name).write_bytes(b"x")
    assert list(_files("images", folder)) == ["sub/CAPITAL.JPEG", "sub/pic.0.png"]
    assert pl.DataFrame({"a": [1]}).height == 1


def test_description_with_a_value_json_does_not_know_is_kept_without_it(tmp_path):
    folder = _folder(tmp_path / "raw", 1)
    name = "sub/pic.0.png"
    (folder / "captions.jsonl").write_text(f'{{"file": "{name}", "caption": "c", "score": NaN}}\n')
    source = open_source("s", {"kind": "images", "url": str(folder)})
    ((row,),) = (list(source.index(file)) for file in source.files())
    assert json.loads(row.metadata) == {"file": name, "caption": "c", "score": None}
