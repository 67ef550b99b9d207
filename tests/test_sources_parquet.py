"""Tables as a source: bytes, base64, file names or texts in a column, all other columns as metadata."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.tiny import picture

from tokenmill.errors import RecipeError, RunError
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.ingest import ingest_work
from tokenmill.pipelines.runner import run_stage
from tokenmill.pipelines.sources.source import IndexRow, open_source


def _rows(folder: Path, *, kind: str = "parquet", **options: object) -> list[IndexRow]:
    source = open_source("s", {"kind": kind, "url": str(folder), **options})
    return [row for file in source.files() for row in source.index(file)]


def _table(folder: Path, **columns: list) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_parquet(folder / "part-0.parquet")
    return folder


def test_pictures_in_a_column_come_with_caption_key_and_metadata(tmp_path):
    _table(
        tmp_path,
        key=["a", "b"],
        picture=[picture(0), picture(1)],
        caption=["first", None],
        width=[64, 65],
    )
    rows = _rows(tmp_path, column="picture")
    assert [(row.key, row.caption, row.payload) for row in rows] == [
        ("a", "first", picture(0)),
        ("b", None, picture(1)),
    ]
    assert json.loads(rows[1].metadata) == {"caption": None, "key": "b", "width": 65}


def test_texts_in_a_column_are_packed_and_read_back(tmp_path):
    folder = _table(tmp_path / "raw", body=["Hello ünï", "World"])
    store = open_store(str(tmp_path / "root"))
    settings = {"kind": "parquet", "url": str(folder), "column": "body", "modality": "text"}
    (((snapshot,)),) = run_stage(
        "ingest", [ingest_work(store, "s", settings, unit_bytes=2**30)], RunOptions(quiet=True)
    )
    (commit,) = snapshot.commits
    rows = snapshot.folder.read_rows(commit)
    assert rows["key"].to_list() == ["part-0.parquet#0", "part-0.parquet#1"]
    texts = [
        store.read_range(snapshot.folder.at(commit.data.name), offset, length).decode()
        for offset, length in rows.select("offset", "length").iter_rows()
    ]
    assert texts == ["Hello ünï", "World"]


def test_row_without_a_sample_fails_with_its_reason(tmp_path):
    _table(tmp_path, picture=[b"", None, picture(0)])
    one, two, three = _rows(tmp_path, column="picture")
    assert (one.error.reason, two.error.reason, three.error) == ("no_image", "no_image", None)


def test_table_without_the_column_stops_the_run_and_names_those_it_has(tmp_path):
    _table(tmp_path, image=[b"x"])
    with pytest.raises(RunError, match=r"no column 'picture'; it has: image"):
        _rows(tmp_path, column="picture")
    with pytest.raises(RecipeError, match=r"sources\.s"):
        _rows(tmp_path)


def test_table_of_several_batches_keeps_its_order(tmp_path):
    _table(tmp_path, body=[f"text {number}" for number in range(1000)])
    rows = _rows(tmp_path, column="body", modality="text")
    assert [row.payload.decode() for row in rows] == [f"text {number}" for number in range(1000)]
    assert len({row.key for row in rows}) == 1000


def test_values_that_json_does_not_know_become_text(tmp_path):
    import datetime

    _table(tmp_path, body=["x"], when=[datetime.date(2026, 1, 2)], raw=[b"\x00\xff"])
    (row,) = _rows(tmp_path, column="body", modality="text")
    assert json.loads(row.metadata)["when"] == "2026-01-02"
    assert json.loads(row.metadata)["raw"] == str(b"\x00\xff")


def _hugging_face(folder: Path) -> None:
    """Write what `datasets` exports: several configurations and splits, pictures as structs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, name in enumerate(("a/train-00000-of-00002", "a/train-00001-of-00002", "a/test-00000-of-00001", "b/x")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"image": {"bytes": picture(number, kind="JPEG"), "path": f"{number}.png"}, "label": number},
            {"image": {"bytes": None, "path": "beside.webp"}, "label": float("nan")},
            {"image": {"bytes": None, "path": None}, "label": 0},
            {"image": None, "label": 0},
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    (folder / "a" / "beside.webp").write_bytes(picture(9, kind="WEBP"))


def test_hugging_face_layout_is_read_by_configuration_and_split(tmp_path):
    _hugging_face(tmp_path)
    rows = _rows(tmp_path, column="image", files="a/train-*.parquet")
    assert len(rows) == 8
    first, beside, *empty = rows[4:]
    assert (first.key, first.extension, first.payload) == (
        "a/train-00001-of-00002.parquet#0",
        "jpg",
        picture(1, kind="JPEG"),
    )
    assert json.loads(first.metadata) == {"image": {"path": "1.png"}, "label": 1}
    assert (beside.payload, beside.extension) == (picture(9, kind="WEBP"), "webp")
    assert json.loads(beside.metadata)["label"] is None
    assert [row.error.reason for row in empty] == ["no_image", "no_image"]
    assert len(_rows(tmp_path, column="image", files=["a/test-*", "b/*"])) == 8
    with pytest.raises(RunError, match=r"no file fits c/\*; the first there is: a/test"):
        _rows(tmp_path, column="image", files="c/*")


@pytest.mark.parametrize("form", ["file", "stream"])
def test_arrow_files_carry_pictures_in_both_of_their_forms(tmp_path, form):
    import pyarrow as pa

    table = pa.table({"picture": [picture(0), picture(1)], "key": ["a.b", "c"], "caption": ["x\x00y", None]})
    make = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
    with make(str(tmp_path / "data.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    rows = _rows(tmp_path, kind="arrow", column="picture")
    assert [(row.key, row.caption, row.payload, row.extension) for row in rows] == [
        ("a.b", "x\x00y", picture(0), "png"),
        ("c", None, picture(1), "png"),
    ]


def test_json_lines_carry_pictures_as_base64(tmp_path):
    from base64 import b64encode

    texts = [b64encode(picture(0)).decode(), f"data:image/png;base64,{b64encode(picture(1)).decode()}", "%%", "AAAA"]
    lines = [json.dumps({"image": text, "caption": f"c{n}"}) for n, text in enumerate(texts)]
    lines += ['{"caption": "none"}', "{broken", '["list"]']
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    rows = _rows(tmp_path, kind="jsonl-images", column="image")
    assert [row.payload for row in rows[:2]] == [picture(0), picture(1)]
    assert json.loads(rows[0].metadata) == {"caption": "c0"}
    reasons = [row.error.reason for row in rows[2:]]
    assert reasons == ["bad_base64", "not_an_image", "no_image", "bad_json", "bad_json"]


def test_json_lines_name_files_beside_them_and_none_elsewhere(tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(5))
    folder = tmp_path / "raw"
    (folder / "sub" / "pictures").mkdir(parents=True)
    (folder / "sub" / "pictures" / "a.png").write_bytes(picture(0))
    (folder / "top.png").write_bytes(picture(1))
    names = ["pictures/a.png", "../top.png", "../../secret.png", "/etc/passwd", "file:///etc/passwd", "gone.png", None]
    (folder / "sub" / "p.jsonl").write_text("\n".join(json.dumps({"file_name": name, "text": "t"}) for name in names))
    rows = _rows(folder, kind="jsonl-images", column="file_name", strings="path", caption_field="text")
    assert [row.payload for row in rows[:2]] == [picture(0), picture(1)]
    reasons = [row.error.reason for row in rows[2:]]
    assert reasons == ["bad_path", "bad_path", "bad_path", "missing_file", "no_image"]
    with pytest.raises(RecipeError, match=r"sources\.s: .*strings: base64 or path, found 'url'"):
        _rows(folder, kind="jsonl-images", column="file_name", strings="url")


def test_bytes_that_are_no_picture_fail_and_extensions_come_from_the_bytes(tmp_path):
    _table(tmp_path, picture=[b"<svg xmlns=''/>", picture(0, kind="TIFF"), picture(0, kind="JPEG")[:8]])
    markup, tiff, cut = _rows(tmp_path, column="picture")
    assert (markup.error.reason, markup.error.message) == ("not_an_image", "HTML, XML or SVG")
    assert tiff.extension == "tiff"
    assert cut.error.reason in ("not_an_image", "corrupt")


def test_second_picture_of_a_row_is_named_and_not_copied_into_the_metadata(tmp_path):
    _table(tmp_path, picture=[picture(0)], mask=[picture(1)])
    (row,) = _rows(tmp_path, column="picture")
    assert json.loads(row.metadata)["mask"]["bytes"] == len(picture(1))


def test_table_cut_in_the_middle_stops_the_run_and_is_named(tmp_path):
    _table(tmp_path, picture=[picture(0)])
    data = (tmp_path / "part-0.parquet").read_bytes()
    (tmp_path / "part-0.parquet").write_bytes(data[:-20])
    with pytest.raises(RunError, match=r"part-0\.parquet: not a readable table"):
        _rows(tmp_path, column="picture")


@pytest.mark.parametrize(
    ("values", "kind", "found"),
    [
        ([5, 0], pa.int64(), ["no_text", "no_text"]),
        ([1.5], pa.float64(), ["no_text"]),
        ([["a"]], None, ["no_text"]),
        ([b"\xff\xfe"], pa.binary(), ["bad_encoding"]),
        (["  ", ""], pa.string(), ["empty_text", "no_text"]),
        ([b"Hello \xc3\xbc", b"b"], pa.binary(), [None, None]),
    ],
)
def test_text_is_what_is_written_and_nothing_else(tmp_path, values, kind, found):
    pq.write_table(pa.table({"text": pa.array(values, kind)}), tmp_path / "a.parquet")
    rows = _rows(tmp_path, column="text", modality="text")
    assert [row.error and row.error.reason for row in rows] == found
    assert all((row.payload is None) == (row.error is not None) for row in rows)


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 256, "/".join(["x" * 200] * 6), "a\0b"])
def test_name_that_no_file_can_have_is_a_failed_row(tmp_path, name):
    (tmp_path / "good.png").write_bytes(picture(0))
    _table(tmp_path, image=[name, "good.png"])
    bad, good = _rows(tmp_path, column="image", strings="path")
    assert bad.error is not None
    assert bad.error.reason == "bad_path"
    assert good.payload == picture(0)
