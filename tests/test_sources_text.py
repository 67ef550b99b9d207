"""JSON Lines as a source: every line exactly once whatever the byte ranges, and a reason for each that is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenmill.pipelines.sources.source import IndexRow, open_source

LINES = st.lists(
    st.one_of(
        st.text("ab ü\n", min_size=1, max_size=30).map(lambda text: json.dumps({"text": text}, ensure_ascii=False)),
        st.just(""),
        st.just("{broken"),
    ),
    max_size=20,
)


def _rows(folder: Path, **options: object) -> list[IndexRow]:
    source = open_source("s", {"kind": "jsonl", "url": str(folder), **options})
    return [row for file in source.files() for row in source.index(file)]


def _written(tmp_path: Path, *lines: bytes | dict) -> Path:
    data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (tmp_path / "texts.jsonl").write_bytes(b"\n".join(data) + b"\n")
    return tmp_path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=LINES,
    range_bytes=st.integers(1, 60),
    newline=st.sampled_from(["\n", "\r\n"]),
    ends=st.booleans(),
)
def test_every_line_belongs_to_exactly_one_byte_range(tmp_path, lines, range_bytes, newline, ends):
    text = newline.join(lines) + (newline if ends else "")
    (tmp_path / "texts.jsonl").write_bytes(text.encode())
    whole = _rows(tmp_path)
    in_ranges = _rows(tmp_path, range_bytes=range_bytes)
    assert [(row.key, row.offset, row.length, row.sha256) for row in in_ranges] == [
        (row.key, row.offset, row.length, row.sha256) for row in whole
    ]
    assert len(whole) == sum(bool(line.strip()) for line in lines)


def test_ranges_of_a_file_are_inputs_of_their_own(tmp_path):
    _written(tmp_path, *({"text": f"document {number}"} for number in range(50)))
    files = open_source("s", {"kind": "jsonl", "url": str(tmp_path), "range_bytes": 300}).files()
    assert len(files) > 3
    assert len({file.reference for file in files}) == len(files)
    assert [(file.reference.start, file.reference.unit_of_range) for file in files][:2] == [
        (0, "bytes"),
        (300, "bytes"),
    ]


def test_line_gives_its_text_key_and_metadata_back(tmp_path):
    _written(
        tmp_path, {"id": "a/b.c", "text": "Hello ünï", "lang": "en"}, {"text": "no id"}, {"id": 7, "text": "seven"}
    )
    source = open_source("s", {"kind": "jsonl", "url": str(tmp_path)})
    data = (tmp_path / "texts.jsonl").read_bytes()
    rows = _rows(tmp_path)
    texts = [source.payload(data[row.offset : row.offset + row.length], row.extension).decode() for row in rows]
    assert texts == ["Hello ünï", "no id", "seven"]
    assert [row.key for row in rows] == ["a/b.c", f"texts.jsonl#{rows[1].offset}", "7"]
    assert json.loads(rows[0].metadata) == {"id": "a/b.c", "lang": "en"}


def test_fields_may_be_called_otherwise(tmp_path):
    _written(tmp_path, {"key": "k", "body": "Hello"})
    (row,) = _rows(tmp_path, text_field="body", key_field="key")
    assert (row.key, row.error) == ("k", None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "\xff\xfe"}', "bad_encoding"),
        (b'{"text": "cut o', "bad_json"),
        (b'["text"]', "no_text"),
        (b'{"title": "x"}', "no_text"),
        (b'{"text": 5}', "no_text"),
        (b'{"text": "  "}', "empty_text"),
        (b"[" * 100_000, "bad_json"),
    ],
)
def test_line_that_is_no_document_fails_with_its_reason_and_its_neighbours_stay(tmp_path, line, reason):
    _written(tmp_path, {"text": "before"}, line, {"text": "after"})
    before, bad, after = _rows(tmp_path)
    assert bad.error.reason == reason
    assert (before.error, after.error) == (None, None)


def test_line_with_a_lone_surrogate_comes_through_as_it_is(tmp_path):
    _written(tmp_path, b'{"text": "half \\ud83d pair"}')
    (row,) = _rows(tmp_path)
    source = open_source("s", {"kind": "jsonl", "url": str(tmp_path)})
    data = (tmp_path / "texts.jsonl").read_bytes()[row.offset : row.offset + row.length]
    assert source.payload(data, "json").decode("utf-8", "surrogatepass") == "half \ud83d pair"


@pytest.mark.s3
def test_ranges_on_an_object_store_give_every_line_once(tmp_path, s3_server):
    from tokenmill.manifests.storage import open_store

    _written(tmp_path, *({"text": f"document {number}"} for number in range(40)))
    root = s3_server.new_root()
    open_store(root, s3_server.options).put("texts.jsonl", (tmp_path / "texts.jsonl").read_bytes())
    source = open_source("s", {"kind": "jsonl", "url": root, "options": s3_server.options, "range_bytes": 200})
    rows = [row for file in source.files() for row in source.index(file)]
    assert [(row.offset, row.sha256) for row in rows] == [(row.offset, row.sha256) for row in _rows(tmp_path)]


def test_metadata_of_a_line_is_json_for_everybody(tmp_path):
    nested = b"[" * 300 + b"]" * 300
    folder = _written(tmp_path, b'{"text": "a", "score": NaN, "n": 1}', b'{"text": "b", "deep": %s, "n": 1}' % nested)
    one, two = (json.loads(row.metadata) for row in _rows(folder))
    assert one == {"score": None, "n": 1}
    assert two["n"] == 1
    assert "nested too deeply" in json.dumps(two["deep"])
