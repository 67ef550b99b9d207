"""Documents in tables: cut into ranges, laid out, their pictures read, and a reason for each that is none."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest
from tests.pages import drawn, encoded_json, index_of, page, reason_of, said, talk, write_llava, write_obelics

from tokenmill.errors import RecipeError, RunError
from tokenmill.pipelines.sources.documents import read_document
from tokenmill.pipelines.sources.raw_document import RawPicture, RawText
from tokenmill.pipelines.sources.source import IndexRow, open_source


def _read(row: IndexRow) -> Any:
    assert row.error is None and row.payload is not None
    return read_document(row.payload, [one.payload or b"" for one in row.pictures], "segments", row.sha256)


def _lines(*values: Any) -> bytes:
    return b"".join(encoded_json(value) + b"\n" for value in values)


def test_llava_json_is_cut_into_ranges_and_brings_its_pictures(tmp_path):
    write_llava(tmp_path)
    settings = {"image_folder": "images", "rows_per_unit": 2}
    source = open_source("s", {"kind": "documents", "url": str(tmp_path), **settings})
    assert [file.unit_of_range for file in source.files()] == ["bytes"] * 3
    rows = index_of(tmp_path, "documents", **settings)
    assert len(rows) == 6 and rows[0].key.startswith("chats/mix.json#")
    for number, row in enumerate(rows):
        document = _read(row)
        assert document.pictures == (drawn(number),)
        assert document.parts[:3] == (
            RawPicture(number=0, learn=False, role="user"), RawText(text="What is this?", role="user", learn=False),
            RawText(text=said(number), role="assistant"),
        )  # fmt: skip
        assert json.loads(row.metadata) == {"id": f"talk{number}", "pictures": [f"scenes/{number}.png"]}


def test_ranges_change_no_document(tmp_path):
    write_llava(tmp_path)
    whole = index_of(tmp_path, "documents", image_folder="images")
    assert index_of(tmp_path, "documents", image_folder="images", rows_per_unit=1) == whole


def test_json_lines_are_cut_by_bytes_and_may_be_compressed(tmp_path):
    write_llava(tmp_path / "a")
    data = _lines(*(talk(number) for number in range(6)))
    (tmp_path / "a" / "talks.jsonl").write_bytes(data)
    (tmp_path / "a" / "talks.jsonl.gz").write_bytes(gzip.compress(data))
    settings = {"image_folder": "images", "key_field": "id"}
    cut = index_of(tmp_path / "a", "documents", files="*.jsonl", range_bytes=500, **settings)
    packed = index_of(tmp_path / "a", "documents", files="*.gz", **settings)
    assert [row.key for row in cut] == [f"talk{number}" for number in range(6)]
    assert [(row.key, row.sha256) for row in packed] == [(row.key, row.sha256) for row in cut]


def test_obelics_parquet_holds_its_pictures(tmp_path):
    write_obelics(tmp_path / "pages.parquet")
    rows = index_of(tmp_path, "documents", rows_per_unit=3)
    assert [row.key for row in rows] == [f"pages.parquet#{number}" for number in range(4)]
    assert [_read(row).pictures for row in rows] == [(drawn(n), drawn(n + 1)) for n in range(4)]
    assert json.loads(rows[1].metadata)["general_metadata"] == '{"page": 1}'
    again = index_of(tmp_path, "documents")
    assert again == rows


def test_picture_may_be_a_data_url(tmp_path):
    url = "data:image/png;base64," + base64.b64encode(drawn(2)).decode()
    question = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    value = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": said(2)}]}
    (tmp_path / "a.json").write_bytes(encoded_json(value))
    (row,) = index_of(tmp_path, "documents")
    assert _read(row).pictures == (drawn(2),) and "base64" not in row.metadata


def test_image_folder_may_lie_elsewhere(tmp_path):
    write_llava(tmp_path / "a")
    rows = index_of(tmp_path / "a" / "chats", "documents", image_folder=str(tmp_path / "a" / "images"))
    assert [reason_of(row) for row in rows] == [None] * 6


def test_another_image_folder_is_another_source_wherever_it_lies(tmp_path):
    write_llava(tmp_path / "a")
    folders = ("", "images", str(tmp_path / "a" / "images"), str(tmp_path / "b"))
    told = [open_source("s", {"kind": "documents", "url": str(tmp_path), "image_folder": one}) for one in folders]
    assert len({str(source.settings) for source in told}) == len(folders)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{", "bad_json"),
        (b"\xff", "bad_encoding"),
        (b"[1]", "bad_json"),
        (encoded_json(talk(0, "none.png")), "missing_picture"),
        (encoded_json(talk(0, "../../secret.png")), "bad_path"),
        (encoded_json(talk(0, "/etc/passwd")), "bad_path"),
        (encoded_json(talk(0, "x" * 2000)), "bad_path"),
        (encoded_json(page(0)), "remote_picture"),
        (encoded_json(talk(0, "none.txt")), "not_an_image"),
        (encoded_json(talk(0, "data:image/png;base64,?")), "bad_base64"),
        (encoded_json({"segments": [{"image": 0}]}), "missing_picture"),
        (encoded_json({**talk(0), "deep": json.loads("[" * 500 + "]" * 500)}), None),
    ],
)
def test_document_that_is_none_says_why_and_its_neighbours_stay(tmp_path, value, reason):
    write_llava(tmp_path, 2)
    (tmp_path / "images" / "none.txt").write_text("this is no picture")
    (tmp_path / "a.jsonl").write_bytes(encoded_json(talk(0)) + b"\n" + value + b"\n\n" + encoded_json(talk(1)))
    rows = index_of(tmp_path, "documents", files="a.jsonl", image_folder="images")
    assert [reason_of(row) for row in rows] == [None, reason, None]


def test_array_that_is_cut_off_keeps_what_is_whole(tmp_path):
    write_llava(tmp_path, 3)
    path = tmp_path / "chats" / "mix.json"
    path.write_bytes(path.read_bytes()[:-30])
    rows = index_of(tmp_path, "documents", image_folder="images")
    assert [reason_of(row) for row in rows] == [None, None, "bad_json", "truncated"]


def test_tables_that_are_none_and_settings_that_say_nothing_are_refused(tmp_path):
    (tmp_path / "a.json").write_text("none")
    with pytest.raises(RunError, match=r"a\.json: neither an array of objects nor an object"):
        index_of(tmp_path, "documents")
    (tmp_path / "a.json").rename(tmp_path / "a.parquet")
    with pytest.raises(RunError, match=r"a\.parquet: not a readable table"):
        index_of(tmp_path, "documents")
    with pytest.raises(RecipeError, match="rows_per_unit, range_bytes: at least 1, found 0"):
        index_of(tmp_path, "documents", rows_per_unit=0)
