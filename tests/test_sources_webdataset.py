"""WebDataset shards as a source: every sample's place and digest, and a reason for each that is none."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.tiny import picture

from tokenmill.errors import ManifestError, RecipeError, RunError
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


def _beside(path: Path, rows: list[dict[str, object]]) -> None:
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)


def test_table_beside_a_shard_says_what_the_shard_does_not(tmp_path):
    _shard(
        tmp_path / "00000.tar",
        [
            ("0.png", b"a"),
            ("1.png", b"b"),
            ("1.txt", b"own text"),
            ("1.json", _json(url="own url", similarity=None, extra=[1])),
            ("2.png", b"c"),
            ("2.json", _json(caption="own caption")),
            ("3.png", b"d"),
        ],
    )
    rows = [
        {"key": str(number), "url": f"u{number}", "caption": f"c{number}", "similarity": 0.5, "status": "success"}
        for number in (2, 1, 0)
    ]
    rows[0]["similarity"] = float("nan")
    _beside(tmp_path / "00000.parquet", rows)
    (tmp_path / "00000_stats.json").write_text("{}")
    zero, one, two, three = _rows(tmp_path)
    assert [row.caption for row in (zero, one, two, three)] == ["c0", "own text", "own caption", None]
    assert json.loads(zero.metadata) == {
        "key": "0",
        "url": "u0",
        "caption": "c0",
        "similarity": 0.5,
        "status": "success",
    }
    said = json.loads(one.metadata)
    assert (said["url"], said["similarity"], said["extra"], said["caption"]) == ("own url", 0.5, [1], "c1")
    assert json.loads(two.metadata)["similarity"] is None
    assert three.metadata == "{}"
    assert [row.caption for row in _rows(tmp_path, join_parquet=False)] == [None, "own text", "own caption", None]


def test_rows_of_the_table_that_should_be_in_the_shard_are_named_and_failed_downloads_are_not(tmp_path):
    data = _shard(tmp_path / "00000.tar", [(f"{number}.png", bytes(600)) for number in range(4)])
    (tmp_path / "00000.tar").write_bytes(data[:2500])
    states = ["success", "success", "failed_to_download", "success"]
    _beside(tmp_path / "00000.parquet", [{"key": str(n), "status": state} for n, state in enumerate(states)])
    rows = _rows(tmp_path)
    assert [(row.key, row.error.reason if row.error else None) for row in rows] == [
        ("0", None),
        ("00000.tar#end", "truncated_archive"),
        ("1", "not_in_archive"),
        ("3", "not_in_archive"),
    ]


def test_changed_table_changes_its_own_shard_alone(tmp_path):
    for shard in range(2):
        _shard(tmp_path / f"{shard}.tar", [("k.png", b"x")])
        _beside(tmp_path / f"{shard}.parquet", [{"key": "k", "caption": "before"}])
    source = open_source("s", {"kind": "webdataset", "url": str(tmp_path)})
    before = [file.reference for file in source.files()]
    _beside(tmp_path / "1.parquet", [{"key": "k", "caption": "after"}])
    after = [file.reference for file in source.files()]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


@pytest.mark.parametrize("what", ["damaged", "no keys"])
def test_table_beside_a_shard_that_cannot_be_joined_fails_by_name_unless_it_is_left_out(tmp_path, what):
    _shard(tmp_path / "00000.tar", [("1.png", b"x")])
    if what == "damaged":
        (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    else:
        _beside(tmp_path / "00000.parquet", [{"id": 1}])
    with pytest.raises(ManifestError, match=r"00000\.parquet.*join_parquet: false"):
        _rows(tmp_path)
    assert len(_rows(tmp_path, join_parquet=False)) == 1


def test_caption_with_control_characters_and_metadata_json_does_not_know_survive(tmp_path):
    members = [
        ("a.jpg", b"x"),
        ("a.txt", b"one\x00two\x1b[31m\r\nthree"),
        ("a.json", b'{"v": NaN, "w": [Infinity, 1]}'),
    ]
    members += [("b.jpg", b"y"), ("b.txt", b"\xff\xfe"), ("c.jpg", b"z"), ("c.json", b'{"caption": 5}')]
    members += [("d.jpg", b"w"), ("d.json", b'{"a":' * 400 + b"1" + b"}" * 400)]
    _shard(tmp_path / "a.tar", members)
    one, two, three, four = _rows(tmp_path)
    assert one.caption == "one\x00two\x1b[31m\r\nthree"
    assert json.loads(one.metadata) == {"v": None, "w": [None, 1]}
    assert (two.caption, three.caption) == ("\ufffd\ufffd", "5")
    assert isinstance(json.loads(four.metadata), dict)


def test_key_ends_at_the_first_dot_of_the_name(tmp_path):
    _shard(tmp_path / "a.tar", [("a.b/c.seg.png", b"x"), ("a.b/c.jpg", b"y"), ("a.b/c.txt", b"t")])
    (row,) = _rows(tmp_path)
    assert (row.key, row.extension, row.caption) == ("a.b/c", "jpg", "t")


def test_row_of_the_table_with_an_odd_cell_is_named_and_the_others_are_joined(tmp_path):
    _shard(tmp_path / "0.tar", [("k.jpg", b"x"), ("l.jpg", b"y")])
    dates = pa.array([0, 2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"key": ["k", "l"], "caption": ["one", "two"], "date": dates}), tmp_path / "0.PARQUET")
    rows = _rows(tmp_path)
    assert [(row.key, row.caption, row.error and row.error.reason) for row in rows] == [
        ("k", "one", None),
        ("l", None, None),
        ("0.PARQUET#1", None, "bad_row"),
    ]
