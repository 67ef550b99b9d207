"""WebDataset shards as a source: every sample's place and digest, and a reason for each that is none."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from tests.tiny import picture

from tokenmill.errors import RecipeError, RunError
from tokenmill.pipelines.ingest import index_output
from tokenmill.pipelines.sources.source import IndexRow, open_source


def _shard(path: Path, members: list[tuple[str, bytes]]) -> bytes:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path.read_bytes()


def _rows(folder: Path, **settings: object) -> list[IndexRow]:
    source = open_source("s", {"kind": "webdataset", "url": str(folder), **settings})
    return [row for file in source.files() for row in source.index(file)]


def _json(**value: object) -> bytes:
    return json.dumps(value).encode()


def test_index_gives_the_place_digest_caption_and_metadata_of_every_sample(tmp_path):
    members = []
    for number in range(3):
        members += [
            (f"{number:08d}.png", picture(number)),
            (f"{number:08d}.txt", f"caption ünï {number}".encode()),
            (f"{number:08d}.json", _json(url=f"u{number}", width=64)),
        ]
    data = _shard(tmp_path / "00000.tar", members)
    rows = _rows(tmp_path)
    assert [row.key for row in rows] == ["00000000", "00000001", "00000002"]
    for number, row in enumerate(rows):
        assert data[row.offset : row.offset + row.length] == picture(number)
        assert row.sha256 == hashlib.sha256(picture(number)).hexdigest()
        assert (row.path, row.extension, row.caption) == ("00000.tar", "png", f"caption ünï {number}")
        assert json.loads(row.metadata) == {"url": f"u{number}", "width": 64}


def test_index_takes_the_caption_from_the_metadata_where_there_is_no_text(tmp_path):
    _shard(tmp_path / "a.tar", [("k.jpg", b"x"), ("k.json", _json(caption="one", alt="two"))])
    assert _rows(tmp_path)[0].caption == "one"
    assert _rows(tmp_path, caption_field="alt")[0].caption == "two"
    assert _rows(tmp_path, caption_field="none")[0].caption is None


def test_index_reads_keys_in_folders_and_extensions_in_capitals(tmp_path):
    _shard(tmp_path / "a.tar", [("x/1.JPG", b"one"), ("x/1.txt", b"t"), ("y/1.jpeg", b"two")])
    assert [(row.key, row.extension) for row in _rows(tmp_path)] == [("x/1", "jpg"), ("y/1", "jpeg")]


def test_index_of_a_sample_without_a_picture_fails_and_names_its_members(tmp_path):
    _shard(tmp_path / "a.tar", [("1.txt", b"t"), ("1.json", b"{}"), ("2.png", b"x")])
    bad, good = _rows(tmp_path)
    assert (bad.error.reason, bad.error.message) == ("no_image", "its members are: json, txt")
    assert good.error is None


def test_index_of_clips_looks_for_clips(tmp_path):
    _shard(tmp_path / "a.tar", [("1.mp4", b"clip"), ("2.png", b"x")])
    clip, still = _rows(tmp_path, modality="video")
    assert clip.extension == "mp4"
    assert still.error.reason == "no_video"


@pytest.mark.parametrize("metadata", [b"{", b"\xff\xfe", b"", b"[" * 100_000])
def test_index_keeps_a_sample_whose_metadata_is_broken_and_says_so(tmp_path, metadata):
    _shard(tmp_path / "a.tar", [("1.png", b"x"), ("1.json", metadata)])
    (row,) = _rows(tmp_path)
    assert row.error is None
    assert "metadata_error" in json.loads(row.metadata)


@pytest.mark.parametrize("cut", [512, 700, 1024, 2048, 2500])
def test_index_of_a_shard_cut_off_keeps_what_is_whole_and_counts_one_failure(tmp_path, cut):
    data = _shard(tmp_path / "a.tar", [(f"{number}.png", bytes([number]) * 600) for number in range(4)])
    (tmp_path / "a.tar").write_bytes(data[:cut])
    *whole, last = _rows(tmp_path)
    assert [row.key for row in whole] == [str(number) for number in range(cut // 1536)]
    assert (last.key, last.error.reason) == ("a.tar#end", "truncated_archive")


def test_index_counts_a_key_that_comes_twice_as_a_failure(tmp_path):
    from tokenmill.pipelines.ingest import _unique

    _shard(tmp_path / "a.tar", [("1.png", b"one"), ("2.png", b"two"), ("1.png", b"three")])
    output = index_output(_unique(_rows(tmp_path)))
    assert (output.counts.rows_in, output.counts.kept, output.counts.failed) == (3, 2, {"duplicate_key": 1})


def test_index_of_the_same_samples_in_another_shard_has_the_same_content(tmp_path):
    members = [(f"{number}.png", picture(number)) for number in range(2)]
    for name, more in (("one", []), ("two", [("0.txt", b"a caption")])):
        (tmp_path / name).mkdir()
        _shard(tmp_path / name / "a.tar", [members[0], *more, members[1]])
    one, two = (index_output(_rows(tmp_path / name)).digests for name in ("one", "two"))
    assert one["content"] == two["content"]
    assert one["rows"] != two["rows"]


def test_source_without_shards_or_with_a_wrong_setting_says_so(tmp_path):
    with pytest.raises(RunError, match=r"no file ends in \.tar"):
        _rows(tmp_path)
    with pytest.raises(RecipeError, match=r"sources\.s: .*'kaption'.*caption_field"):
        _rows(tmp_path, kaption="x")
    with pytest.raises(RecipeError, match=r"sources\.s: .*'nosuch'.*webdataset"):
        open_source("s", {"kind": "nosuch", "url": str(tmp_path)})


def test_source_ignores_what_img2dataset_leaves_beside_its_shards(tmp_path):
    _shard(tmp_path / "00000.tar", [("1.png", b"x")])
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    (tmp_path / "00000_stats.json").write_text("{}")
    assert len(_rows(tmp_path)) == 1
